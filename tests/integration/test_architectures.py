"""Model families over two stages: the tokens and logprobs of one process, from the full model and from an export."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.architectures import ARCHITECTURES, HYBRID, LAYERS, SPLIT_WRONG
from tests.integration.models import split
from tests.integration.serving import long_only
from tests.integration.side_by_side import Found, assert_same, one_process, stages
from tests.integration.test_mistakes import assert_one_line, copy_model, stage
from tests.integration.zygote import Zygote
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.pipeline.ports import free_base_port

CUT = [(0, 3), (3, LAYERS)]


def assert_read_only_its_own(found: Found, model: Path) -> None:
    """Each stage has read every tensor of its layers, none of the others', and at most all that lie outside."""
    checkpoint = Checkpoint.open(str(model))
    outside = len(checkpoint.tensors) - len(checkpoint.layers)
    for load in found.loads:
        own = [
            layer for layer in checkpoint.layers.values() if load["start_layer"] <= layer < load["end_layer"]
        ]
        assert own and len(own) <= load["tensors_read"] <= len(own) + outside


@long_only
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_stages_say_what_one_process_says(name: str, zygote: Zygote, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    settings: dict[str, Any] = architecture.settings_of_vllm
    model = architecture.write(tmp_path / "model")
    expected = one_process(zygote, tmp_path, model, **settings)
    whole = stages(zygote, tmp_path, [model, model], **settings)  # Stage 1 hears of them from stage 0.
    assert_same(whole, expected)
    assert_read_only_its_own(whole, model)
    folders = split(model, tmp_path / "split", CUT)
    exported = stages(zygote, tmp_path, folders, flags=[architecture.flags], **settings)
    assert_same(exported, expected)
    assert [load["end_layer"] for load in exported.loads] == [end for _, end in CUT]


@long_only
def test_stages_of_a_hybrid_say_what_one_process_says(zygote: Zygote, tmp_path: Path) -> None:
    """With layers of both kinds, and one with attention alone; of states alone none can be."""
    settings: dict[str, Any] = HYBRID.settings_of_vllm
    model = HYBRID.write(tmp_path / "model")
    expected = one_process(zygote, tmp_path, model, **settings)
    for cuts in ((0, 2, 4), (0, 3, 4)):
        folders = split(model, tmp_path / f"split {cuts}", list(pairwise(cuts)))
        assert_same(stages(zygote, tmp_path, folders, **settings), expected)
    with pytest.raises(AssertionError, match="vLLM refuses this configuration.*KV cache layouts"):
        stages(zygote, tmp_path, [model, model], ranges=["0-1", "1-4"], **settings)


@pytest.mark.parametrize("index", [0, 1])
def test_a_model_that_vllm_cannot_split_ends_in_one_line(index: int, zygote: Zygote, tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model", architectures=["BertModel"])
    ended = zygote.run(["serve", str(model), *stage(index, 2, free_base_port(4))])
    assert_one_line(
        ended, "vLLM cannot split BertModel over pipeline stages", "does not implement SupportsPP"
    )
    assert ended.code == 2


@long_only
@pytest.mark.parametrize("name", SPLIT_WRONG)
def test_a_model_that_vllm_would_split_wrong_is_refused(name: str, zygote: Zygote, tmp_path: Path) -> None:
    architecture, why = SPLIT_WRONG[name]
    settings: dict[str, Any] = architecture.settings_of_vllm
    model = architecture.write(tmp_path / "model")
    with pytest.raises(AssertionError, match=f"over pipeline stages: {why}.*; serve it in one process"):
        stages(zygote, tmp_path, [model, model], **settings)
