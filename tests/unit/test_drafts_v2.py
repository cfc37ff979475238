"""Model Runner V2: drafts leave the last stage with its reply, and come to the others with the tokens they follow."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from vllm.v1.request import RequestStatus

from zmqpp import control
from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm import compat, compat_v2
from zmqpp.vllm.drafted import Drafted
from zmqpp.vllm.drafts import check_method, follow_up_drafts
from zmqpp.vllm.flights import Flights
from zmqpp.vllm.pp_handler import RingHandler
from zmqpp.vllm.runner import RunnerV2
from zmqpp.vllm.token_slots import TokenSlots

pytestmark = pytest.mark.vllm


def test_what_the_last_stage_drafted_is_as_it_was_then() -> None:
    counts = torch.tensor([1, 2, 0], dtype=torch.int32)
    drafted = Drafted(["a", "b", "c"], torch.tensor([[3, 4], [5, -1], [6, 7]]), counts)
    counts.zero_()
    drafts = drafted.read()
    assert drafts.req_ids == ["a", "b", "c"]
    assert drafts.draft_token_ids == [[3, 4], [5], []], "a piece of a prompt is followed by nothing"


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> RingHandler:
    """Of a stage that is not the last one, with three drafts for a request. It runs no vLLM."""
    monkeypatch.setattr(compat_v2, "need_sampled_mask", lambda: None)
    monkeypatch.setattr(compat_v2, "uploader", lambda: lambda array, device: torch.from_numpy(array.copy()))
    return RingHandler(TokenSlots(8, 100, 3), torch.device("cpu"), is_last=False)


def test_drafts_are_put_in_the_rows_of_their_requests_and_others_stay(handler: RingHandler) -> None:
    slots, rows = handler.slots, torch.full((4, 3), 9, dtype=torch.int64)
    slots.begin(1, ["a", "b", "c"], [])
    slots.keep(["c", "a", "b"], np.array([3, 2, 0]), np.array([True] * 3))
    slots.give_up(3)
    slots.begin(2, ["a"], [control.Sampled(1, [[1], [2], [3]], [[5, 6, 7], [8], [4, 4, 4]])])
    tokens = handler.get_prev_sampled_outputs(rows)
    assert rows.tolist() == [[8, 0, 0], [9, 9, 9], [5, 6, 7], [9, 9, 9]]
    assert tokens is not None
    assert tokens["idx_mapping"].tolist() == [-1, 2, 0]
    assert tokens["sampled_tokens"][:, 0].tolist() == [3, 1, 2]


@pytest.mark.parametrize("drafts", [[[1]], [[1], [2, 3, 4, 5]], [[1], [100]]])
def test_drafts_that_do_not_fit_their_step_are_refused(handler: RingHandler, drafts: list[list[int]]) -> None:
    handler.slots.begin(1, ["a", "b"], [])
    handler.slots.keep(["a", "b"], np.array([0, 1]), np.array([True, True]))
    with pytest.raises(MalformedError, match="step 1 has not drawn"):
        handler.slots.begin(2, ["a"], [control.Sampled(1, [[1], [2]], drafts)])


# ---- the engine ------------------------------------------------------------------------------------------


def request(*, grammar: bool, ahead: int = 0, status: RequestStatus = RequestStatus.RUNNING) -> Any:
    return SimpleNamespace(use_structured_output=grammar, num_output_placeholders=ahead, status=status)


@pytest.mark.parametrize(("ahead", "given"), [(False, ["a", "b", "c"]), (True, ["b"])])
def test_the_scheduler_is_given_the_drafts_that_it_can_use(ahead: bool, given: list[str]) -> None:
    """With async scheduling those of grammars that it has not scheduled meanwhile; it counts on all others."""
    taken: list[Any] = []
    scheduler = SimpleNamespace(
        requests={
            "a": request(grammar=False),
            "b": request(grammar=True),
            "c": request(grammar=True, ahead=4),
            "d": request(grammar=True, status=RequestStatus.PREEMPTED),
        },
        update_from_output=lambda step, output: "outputs",
        update_draft_token_ids=taken.append,
    )
    follow_up_drafts(scheduler, ahead)
    follow_up_drafts(scheduler, ahead)
    drafts = SimpleNamespace(req_ids=["a", "b", "c", "d", "gone"], draft_token_ids=[[1]] * 5)
    assert scheduler.update_from_output(None, SimpleNamespace(zmqpp_drafts=drafts)) == "outputs"
    assert [(one.req_ids, one.draft_token_ids) for one in taken] == [(given, [[1]] * len(given))]
    scheduler.update_from_output(None, SimpleNamespace())
    assert len(taken) == 1


def test_without_feedback_a_step_computes_no_drafts_that_are_known() -> None:
    assert Flights(SimpleNamespace()).drafts_of(1) is None  # type: ignore[arg-type]


def test_a_method_that_needs_v2_says_so_and_others_are_refused() -> None:
    check_method(None, "V1")
    check_method(SimpleNamespace(method="ngram"), "V1")
    check_method(SimpleNamespace(method="ngram_gpu"), "V2")
    with pytest.raises(UnsupportedError, match="'ngram_gpu' needs Model Runner V2"):
        check_method(SimpleNamespace(method="ngram_gpu"), "V1")
    with pytest.raises(UnsupportedError, match="'eagle' is not supported.*ngram or ngram_gpu"):
        check_method(SimpleNamespace(method="eagle"), "V2")


def test_drafts_are_refused_where_vllm_itself_cannot_accept_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.30.1")
    monkeypatch.setattr("vllm.triton_utils.HAS_TRITON", False)
    check_method(None, "V1")
    with pytest.raises(UnsupportedError, match="vLLM 0.30.1 cannot speculate.*install 0.31 or newer"):
        check_method(SimpleNamespace(method="ngram"), "V1")
    monkeypatch.setattr("vllm.triton_utils.HAS_TRITON", True)
    check_method(SimpleNamespace(method="ngram"), "V1")


# ---- a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drafts", "tokens", "fits"), [(3, 4, True), (1, 4, True), (4, 5, False), (3, 3, False)]
)
def test_a_step_has_room_for_its_drafts(drafts: int, tokens: int, fits: bool) -> None:
    vllms = SimpleNamespace(num_speculative_steps=3)
    wrapper = SimpleNamespace(worker=SimpleNamespace(model_runner=vllms))
    config, group = SimpleNamespace(speculative_config=None), SimpleNamespace(is_last_rank=False)
    step = SimpleNamespace(
        scheduled_new_reqs=[],
        scheduled_spec_decode_tokens={"a": [-1] * drafts},
        num_scheduled_tokens={"a": tokens},
    )
    with (
        nullcontext() if fits else pytest.raises(MalformedError, match=f"{drafts} drafts of the request 'a'")
    ):
        RunnerV2(config, wrapper, group).check(step)  # type: ignore[arg-type]
