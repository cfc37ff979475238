"""Which stage makes a classifier of the language model's head, and what it needs for that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.errors import ConfigError
from zmqpp.vllm.classifier import is_made_of_head, load_without, with_head

pytestmark = pytest.mark.vllm
SAID = {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}


class Config(SimpleNamespace):
    def get_text_config(self) -> Config:
        return getattr(self, "text", self)


def model_config(folder: Path, **said: Any) -> SimpleNamespace:
    return SimpleNamespace(hf_config=Config(**said), tokenizer=str(folder))


@pytest.fixture
def model() -> torch.nn.Module:
    model = torch.nn.Module()
    model.score = torch.nn.Linear(2, 1, bias=False)
    return model


def test_a_classifier_with_weights_of_its_own_is_left_alone(model: torch.nn.Module, tmp_path: Path) -> None:
    assert not is_made_of_head(model, model_config(tmp_path))
    assert not is_made_of_head(torch.nn.Module(), model_config(tmp_path, **SAID)), "it generates"


def test_what_is_said_of_the_text_model_counts(model: torch.nn.Module, tmp_path: Path) -> None:
    assert is_made_of_head(model, model_config(tmp_path, **SAID))
    assert is_made_of_head(model, model_config(tmp_path, text=Config(**SAID)))


def test_the_last_stage_reads_the_head_and_needs_a_tokenizer(tmp_path: Path) -> None:
    config = model_config(tmp_path, **SAID)
    with pytest.raises(ConfigError, match=r"stage 1: .* \['no', 'yes'\], .* copy tokenizer\.json"):
        with_head(["lm_head.", "model.layers.0."], config, 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert with_head(["lm_head.", "model.layers.0."], config, 1) == ["model.layers.0."]


@pytest.mark.parametrize("nested", [False, True])
def test_the_others_load_as_if_it_had_weights(nested: bool, tmp_path: Path) -> None:
    config = model_config(tmp_path, **({"text": Config(**SAID)} if nested else SAID))

    def load(weights: list[str]) -> set[str]:
        text = config.hf_config.get_text_config()
        assert text.classifier_from_token is None and text.method is None
        return set(weights)

    assert load_without(config, load, ["norm.weight"]) == {"norm.weight", "score.weight"}
    text = config.hf_config.get_text_config()
    assert (text.classifier_from_token, text.method) == tuple(SAID.values())
