"""Vectors and classes of models other than Llama, over two stages: those of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.architectures import LAYERS, Architecture
from tests.integration.cases import LONG_PROMPT, PROMPTS
from tests.integration.models import split
from tests.integration.serving import long_only
from tests.integration.side_by_side import Found, one_process, stages
from tests.integration.zygote import Zygote

pytestmark = long_only

TEXTS = [*PROMPTS[:6], LONG_PROMPT[:900]]
_HEAD_32 = {"head_dim": 32, "tie_word_embeddings": True}
_WORDS = ["\u0120no", "\u0120true"]  # of the embedded model's vocabulary
KINDS: dict[str, tuple[Architecture, str, int]] = {
    "embeddings of Qwen3": (Architecture("Qwen3Config", "Qwen3ForCausalLM", _HEAD_32), "embed", 128),
    "classes of Qwen2": (
        Architecture("Qwen2Config", "Qwen2ForSequenceClassification", {"num_labels": 3}),
        "classify",
        3,
    ),
}
OF_THE_HEAD: dict[str, tuple[Architecture, dict[str, Any], int]] = {
    "tied, of two words": (
        Architecture("Qwen3Config", "Qwen3ForCausalLM", _HEAD_32),
        {
            **{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": _WORDS},
            "is_original_qwen3_reranker": True,
        },
        1,
    ),
    "untied, of three words": (
        Architecture("LlamaConfig", "LlamaForCausalLM"),
        {
            **{"architectures": ["LlamaForSequenceClassification"], "method": "no_post_processing"},
            **{"classifier_from_token": ["0", "1", "2"], "num_labels": 3},
        },
        3,
    ),
}
"""Classifiers that vLLM makes of a language model's head when it loads."""


def assert_close(found: Found, expected: Found, width: int) -> None:
    for one, other in zip(found.answers, expected.answers, strict=True):
        assert len(one) == width and one == pytest.approx(other, abs=2e-4)


@pytest.mark.parametrize("name", KINDS)
def test_two_stages_give_what_one_process_gives(name: str, zygote: Zygote, tmp_path: Path) -> None:
    architecture, task, width = KINDS[name]
    settings: dict[str, Any] = {"pool": [task, TEXTS], "runner": "pooling", "convert": task}
    model = architecture.write(tmp_path / "model")
    expected = one_process(zygote, tmp_path, model, **dict(settings))
    assert len({str(one) for one in expected.answers}) == len(TEXTS)
    assert_close(stages(zygote, tmp_path, [model, model], **dict(settings)), expected, width)
    folders = split(model, tmp_path / "split", [(0, 3), (3, LAYERS)])
    assert_close(stages(zygote, tmp_path, folders, **dict(settings)), expected, width)


@pytest.mark.parametrize("name", OF_THE_HEAD)
def test_a_classifier_is_made_of_the_head_on_the_last_stage(
    name: str, zygote: Zygote, tmp_path: Path
) -> None:
    architecture, overrides, width = OF_THE_HEAD[name]
    settings: dict[str, Any] = {"pool": ["classify", TEXTS], "runner": "pooling", "hf_overrides": overrides}
    model = architecture.write(tmp_path / "model")
    expected = one_process(zygote, tmp_path, model, **dict(settings))
    assert len({str(one) for one in expected.answers}) > len(TEXTS) // 2
    assert_close(stages(zygote, tmp_path, [model] * 3, **dict(settings)), expected, width)
    folders = split(model, tmp_path / "split", [(0, 3), (3, LAYERS)])
    with pytest.raises(AssertionError, match=r"stage 1: the classifier is made .* copy tokenizer\.json"):
        stages(zygote, tmp_path, folders, **dict(settings))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders[0] / file, folders[1])
    assert_close(stages(zygote, tmp_path, folders, **dict(settings)), expected, width)


def test_a_classifier_of_tokens_keeps_its_bias(zygote: Zygote, tmp_path: Path) -> None:
    """vLLM makes the parameter when it comes upon the tensor."""
    architecture = Architecture("Qwen2Config", "Qwen2ForTokenClassification", {"num_labels": 4})
    model = architecture.write(tmp_path / "model")
    settings: dict[str, Any] = {"pool": ["token_classify", TEXTS[:6]], "runner": "pooling"}
    settings["max_num_batched_tokens"] = 512
    expected = one_process(zygote, tmp_path, model, **dict(settings))
    folders = split(model, tmp_path / "split", [(0, 3), (3, LAYERS)])
    for models in ([model, model], folders):
        found = stages(zygote, tmp_path, models, **dict(settings))
        for text, other in zip(found.answers, expected.answers, strict=True):
            assert_close(Found(text, {}, []), Found(other, {}, []), 4)


def test_how_vectors_are_pooled_is_said_to_stage_0_alone(zygote: Zygote, tmp_path: Path) -> None:
    """The last stage pools."""
    architecture, task, width = KINDS["embeddings of Qwen3"]
    model = architecture.write(tmp_path / "model")
    asked: dict[str, Any] = {"pool": [task, TEXTS[:6]], "runner": "pooling", "convert": task}
    asked["max_num_batched_tokens"] = 512  # A mean is taken of whole prompts.
    means = {**asked, "pooler_config": {"pooling_type": "MEAN"}}
    expected = one_process(zygote, tmp_path, model, **dict(means))
    assert expected.answers != one_process(zygote, tmp_path, model, **dict(asked)).answers
    assert_close(stages(zygote, tmp_path, [model, model], **dict(means)), expected, width)


def test_a_model_that_attends_both_ways_has_no_kv_cache(zygote: Zygote, tmp_path: Path) -> None:
    """The scheduler hands out no blocks for it."""
    model = Architecture("LlamaConfig", "LlamaModel").write(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaBidirectionalModel"], "pooling": "avg"}
    (model / "config.json").write_text(json.dumps(config))
    settings: dict[str, Any] = {"pool": ["embed", TEXTS], "runner": "pooling", "max_num_batched_tokens": 512}
    expected = one_process(zygote, tmp_path, model, **dict(settings))
    assert_close(stages(zygote, tmp_path, [model, model], **dict(settings)), expected, 128)
    folders = split(model, tmp_path / "split", [(0, 3), (3, LAYERS)])
    assert_close(stages(zygote, tmp_path, folders, **dict(settings)), expected, 128)
