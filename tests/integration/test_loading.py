"""What the stages of many families hold, from the model and from its export, is what one process holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.architectures import LAYERS, Architecture
from tests.integration.families import FAMILIES
from tests.integration.models import int8_copy, split
from tests.integration.serving import long_only
from tests.integration.side_by_side import SETTINGS
from tests.integration.zygote import Zygote

pytestmark = long_only

LOADING = str(Path(__file__).with_name("loading.py"))
RANGES = [(0, 1), (1, LAYERS)]
CLASSIFIER = {"num_labels": 3}
POOLING: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "embeddings of GPT-2": (FAMILIES["GPT-2"], {"convert": "embed"}),
    "embeddings of OPT": (FAMILIES["OPT"], {"convert": "embed"}),
    "embeddings of Gemma 2, without a head": (
        Architecture("Gemma2Config", "Gemma2Model", {"head_dim": 32}),
        {},
    ),
    "classes of Gemma 2": (
        Architecture("Gemma2Config", "Gemma2ForSequenceClassification", {"head_dim": 32, **CLASSIFIER}),
        {},
    ),
    "classes of Mistral": (Architecture("MistralConfig", "MistralForSequenceClassification", CLASSIFIER), {}),
    "classes of OPT": (
        Architecture("OPTConfig", "OPTForSequenceClassification", {"ffn_dim": 256, **CLASSIFIER}),
        {},
    ),
}


def differences(
    zygote: Zygote, folder: Path, model: Path, forms: Sequence[Sequence[Path]], **settings: Any
) -> Any:
    known = {name: value for name, value in SETTINGS.items() if name != "kv_cache_memory_bytes"}
    task = {
        **{"model": str(model), "ranges": RANGES, "settings": {**known, **settings}},
        "forms": [[str(path) for path in form] for form in forms],
    }
    written, answer = folder / "loading.task", folder / "loading.json"
    written.write_text(json.dumps(task))
    ended = zygote.run([LOADING, str(written), str(answer)], within_s=240)
    assert ended.code == 0 and answer.exists(), f"{ended.code}: {ended.output[-4000:]}"
    return json.loads(answer.read_text())


def assert_stages_hold_it(zygote: Zygote, folder: Path, model: Path, **settings: Any) -> None:
    forms = [[model] * len(RANGES), split(model, folder / "split", RANGES)]
    assert differences(zygote, folder, model, forms, **settings) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_hold_what_one_process_holds(name: str, zygote: Zygote, tmp_path: Path) -> None:
    assert_stages_hold_it(zygote, tmp_path, FAMILIES[name].write(tmp_path / "model"))


@pytest.mark.parametrize("name", POOLING)
def test_so_do_those_of_pooling_models(name: str, zygote: Zygote, tmp_path: Path) -> None:
    architecture, settings = POOLING[name]
    model = architecture.write(tmp_path / "model")
    assert_stages_hold_it(zygote, tmp_path, model, runner="pooling", max_num_batched_tokens=512, **settings)


@pytest.mark.parametrize("name", ["Qwen2", "Gemma 2", "Phi 3"])
def test_so_do_those_of_quantised_weights(name: str, zygote: Zygote, tmp_path: Path) -> None:
    model = int8_copy(FAMILIES[name].write(tmp_path / "plain"), tmp_path / "model")
    assert_stages_hold_it(zygote, tmp_path, model)


def test_what_a_stage_lacks_is_seen(zygote: Zygote, tmp_path: Path) -> None:
    """Of two models of other numbers, one each to a stage."""
    one, other = (FAMILIES["Qwen2"].write(tmp_path / str(seed), seed) for seed in (1, 2))
    found = differences(zygote, tmp_path, one, [[one, other]])
    assert found and all("stage 1 has another model." in line or "lm_head" in line for line in found)


def test_a_stage_without_the_experts_that_vllm_wants_says_so(zygote: Zygote, tmp_path: Path) -> None:
    architecture = FAMILIES["GLM 4 MoE"]
    dense_first = replace(architecture, settings={**architecture.settings, "first_k_dense_replace": 1})
    model = dense_first.write(tmp_path / "model")
    with pytest.raises(
        AssertionError, match="stage 0: vLLM wants a layer with experts on every stage of Glm4Moe"
    ):
        differences(zygote, tmp_path, model, [[model, model]])
