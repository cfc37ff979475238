"""Vectors and classes of models other than Llama, over two stages: those of one process."""

from __future__ import annotations

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
KINDS: dict[str, tuple[Architecture, str, int]] = {
    "embeddings of Qwen3": (Architecture("Qwen3Config", "Qwen3ForCausalLM", _HEAD_32), "embed", 128),
    "classes of Qwen2": (
        Architecture("Qwen2Config", "Qwen2ForSequenceClassification", {"num_labels": 3}),
        "classify",
        3,
    ),
}


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
