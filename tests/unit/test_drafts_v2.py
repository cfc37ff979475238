"""Model Runner V2: drafts come to a stage with the step that computes them, and leave the last one with its reply."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.vllm.runner import RunnerV2

pytestmark = pytest.mark.vllm


def runner(**vllms: Any) -> RunnerV2:
    """Around a runner of vLLM that has `vllms` only."""
    config = SimpleNamespace(speculative_config=None)
    wrapper = SimpleNamespace(worker=SimpleNamespace(model_runner=SimpleNamespace(**vllms)))
    return RunnerV2(config, wrapper, SimpleNamespace(is_last_rank=False))  # type: ignore[arg-type]


def test_a_request_s_drafts_are_put_in_its_row_and_others_stay() -> None:
    state = SimpleNamespace(
        req_id_to_index={"a": 2, "b": 0, "c": 1}, draft_tokens=torch.full((4, 3), 9, dtype=torch.int64)
    )
    runner(req_states=state)._take_drafts({"a": [5, 6, 7], "b": [8]})
    assert state.draft_tokens.tolist() == [[8, 0, 0], [9, 9, 9], [5, 6, 7], [9, 9, 9]]


def test_a_new_request_has_no_row_and_its_step_is_filled_up_with_nothing() -> None:
    state = SimpleNamespace(req_id_to_index={}, draft_tokens=torch.zeros(2, 2, dtype=torch.int64))
    runner(req_states=state)._take_drafts({"new": [-1, -1]})
    assert not state.draft_tokens.any()


def test_what_the_last_stage_drafted_leaves_with_its_reply() -> None:
    handler = SimpleNamespace(drafted=None, counts=None)
    last = runner(pp_handler=handler)
    assert last.drafts() is None
    handler.drafted = (["a", "b", "c"], torch.tensor([[3, 4], [5, -1], [6, 7]]))
    handler.counts = torch.tensor([1, 2, 0])
    drafts = last.drafts()
    assert drafts.req_ids == ["a", "b", "c"]
    assert drafts.draft_token_ids == [[3, 4], [5], []], "a piece of a prompt is followed by nothing"
