"""Model Runner V2: which tokens a step waits for, what goes with it, and which rows they are given to. No vLLM runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zmqpp import control
from zmqpp.errors import MalformedError
from zmqpp.vllm.feedback import TokenFeedback
from zmqpp.vllm.token_slots import TokenSlots

VOCABULARY = 100


def step(
    new: dict[str, tuple[int, int, int]] | None = None,
    cached: dict[str, tuple[int, int]] | None = None,
    finished: set[str] = frozenset(),  # type: ignore[assignment]
    preempted: set[str] | None = None,
) -> Any:
    """A SchedulerOutput: `new` name -> (tokens it starts from, computed, scheduled), `cached` -> the latter two."""
    new, cached = new or {}, cached or {}
    counts = {name: given[-1] for name, given in (new | cached).items()}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prefill_token_ids=[1] * length, num_computed_tokens=computed)
            for name, (length, computed, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=[computed for computed, _ in cached.values()]
        ),
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        finished_req_ids=set(finished),
        preempted_req_ids=preempted,
    )


def output(**tokens: list[int]) -> Any:
    return SimpleNamespace(req_ids=list(tokens), sampled_token_ids=list(tokens.values()))


def test_a_decode_waits_for_the_step_that_draws_its_token() -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (4, 0, 4)}))
    feedback.begin(2, step({"b": (4, 0, 4)}))
    decode = step(cached={"a": (4, 1)})
    assert feedback.needed(decode) == [1]
    feedback.take(1, output(a=[7]))
    assert feedback.needed(decode) == []
    assert feedback.begin(3, decode) == [control.Sampled(1, [[7]])]
    assert feedback.needed(step(cached={"b": (4, 1), "a": (5, 1)})) == [2, 3]
    assert feedback.begin(4, step(cached={"b": (4, 1)})) == [], "what was given is not given again"


def test_pieces_of_a_prompt_wait_for_nothing() -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (10, 0, 4)}))
    second = step(cached={"a": (4, 4)})
    assert feedback.needed(second) == []
    feedback.begin(2, second)
    last = step(cached={"a": (8, 2)})
    assert feedback.needed(last) == []
    feedback.begin(3, last)
    assert feedback.needed(step(cached={"a": (10, 1)})) == [3]


def test_a_request_that_comes_again_starts_from_what_it_brings() -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (4, 0, 4)}))
    feedback.begin(2, step(cached={"a": (4, 1)}))
    feedback.begin(3, step({"a": (6, 0, 3)}, preempted={"a"}))
    rest = step(cached={"a": (3, 3)})
    assert feedback.needed(rest) == []
    feedback.begin(4, rest)
    assert feedback.needed(step(cached={"a": (6, 1)})) == [4]


def test_tokens_are_in_the_order_of_the_step_whatever_the_batch_s() -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (4, 0, 4), "b": (9, 0, 2), "c": (4, 0, 4)}))
    feedback.take(1, output(c=[3], a=[1], b=[]))
    assert feedback.begin(2, step(finished={"a"})) == [control.Sampled(1, [[1], [], [3]])]


def test_after_a_loss_nothing_is_waited_for_or_given() -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (4, 0, 4)}))
    feedback.begin(2, step({"b": (4, 0, 4)}))
    feedback.take(1, output(a=[7]))
    feedback.forget()
    feedback.take(2, output(b=[8]))
    assert feedback.needed(step(cached={"b": (4, 1)})) == []
    assert feedback.begin(3, step({"a": (5, 0, 5)})) == []


@pytest.mark.parametrize("tokens", [[VOCABULARY], [-1], [1, 2], ["1"], [True], [None]])
def test_what_is_no_token_is_refused(tokens: list[Any]) -> None:
    feedback = TokenFeedback(VOCABULARY)
    feedback.begin(1, step({"a": (4, 0, 4)}))
    with pytest.raises(MalformedError, match="tokens of a request"):
        feedback.take(1, output(a=tokens))


# ---- on a stage ------------------------------------------------------------------------------------------


def slots_after(names: list[str], rows: list[int], needed: list[bool] | None = None) -> TokenSlots:
    """Step 1 was scheduled with `names` in alphabetical order, and ran with these rows."""
    slots = TokenSlots(8, VOCABULARY)
    slots.begin(1, sorted(names), [])
    slots.keep(names, np.array(rows), np.array(needed or [True] * len(names)))
    return slots


def drawn(slots: TokenSlots) -> list[tuple[int, int, int]]:
    found = slots.drawn()
    if found is None:
        return []
    return list(zip(found.rows.tolist(), found.tokens[:, 0].tolist(), found.counts.tolist(), strict=True))


def test_each_row_is_given_its_request_s_token_once() -> None:
    slots = slots_after(["c", "a", "b"], [5, 2, 0])
    assert drawn(slots) == []
    slots.begin(2, ["a"], [control.Sampled(1, [[11], [12], [13]])])
    assert drawn(slots) == [(5, 13, 1), (2, 11, 1), (0, 12, 1)]
    assert drawn(slots) == []
    slots.begin(3, ["a"], [control.Sampled(1, [[11], [12], [13]])])
    assert drawn(slots) == [], "a step's tokens come once"


def test_a_row_that_was_given_up_meanwhile_gets_none() -> None:
    slots = slots_after(["a", "b"], [0, 1])
    slots.give_up(0)
    slots.begin(2, ["d"], [control.Sampled(1, [[11], [12]])])
    assert drawn(slots) == [(-1, 11, 1), (1, 12, 1)]


def test_where_nobody_needs_a_token_there_is_nothing() -> None:
    slots = slots_after(["a", "b"], [0, 1], [False, True])
    slots.give_up(1)
    slots.begin(2, ["d"], [control.Sampled(1, [[11], [12]])])
    assert drawn(slots) == []


def test_a_row_without_a_token_counts_none() -> None:
    slots = slots_after(["a", "b"], [0, 1])
    slots.begin(2, ["a"], [control.Sampled(1, [[], [12]])])
    assert drawn(slots) == [(0, 0, 0), (1, 12, 1)]


def test_tokens_of_several_steps_come_together_and_in_order() -> None:
    slots = slots_after(["a"], [0])
    slots.begin(2, ["b"], [])
    slots.keep(["b"], np.array([3]), np.array([True]))
    slots.begin(3, ["a"], [control.Sampled(1, [[11]]), control.Sampled(2, [[12]])])
    assert drawn(slots) == [(0, 11, 1), (3, 12, 1)]


def test_steps_that_left_no_slot_are_passed_over() -> None:
    slots = slots_after(["a"], [0])
    slots.begin(3, ["a"], [control.Sampled(2, [[5], [6], [7]])])
    assert drawn(slots) == []
    slots.forget()
    slots.begin(4, ["a"], [control.Sampled(1, [[11]])])
    assert drawn(slots) == []


@pytest.mark.parametrize("tokens", [[], [[1]], [[1], [VOCABULARY]], [[1], [2, 3]]])
def test_tokens_that_do_not_fit_their_step_are_refused(tokens: list[list[int]]) -> None:
    slots = slots_after(["a", "b"], [0, 1])
    with pytest.raises(MalformedError, match="step 1 has not drawn"):
        slots.begin(2, ["a"], [control.Sampled(1, tokens)])


def test_drafts_that_were_accepted_are_tokens_and_the_others_are_counted() -> None:
    slots = TokenSlots(8, VOCABULARY, drafts=3)
    slots.begin(1, ["a", "b", "c"], [], {"a": [1, 2, 3], "c": [4]})
    slots.keep(["c", "b", "a"], np.array([5, 6, 7]), np.array([True] * 3))
    slots.begin(2, ["a"], [control.Sampled(1, [[1, 2, 9], [8], [5]])])
    found = slots.drawn()
    assert found is not None
    assert found.rows.tolist() == [5, 6, 7]
    assert found.tokens.tolist() == [[5, 0, 0, 0], [8, 0, 0, 0], [1, 2, 9, 0]]
    assert found.counts.tolist() == [1, 1, 3]
    assert found.rejected.tolist() == [1, 0, 1]


def test_more_tokens_than_were_drafted_and_one_are_refused() -> None:
    slots = TokenSlots(8, VOCABULARY, drafts=3)
    slots.begin(1, ["a"], [], {"a": [1]})
    slots.keep(["a"], np.array([0]), np.array([True]))
    with pytest.raises(MalformedError, match="step 1 has not drawn"):
        slots.begin(2, ["a"], [control.Sampled(1, [[1, 2, 3]])])


def test_a_step_of_more_drafts_than_have_room_draws_no_more_tokens_than_have() -> None:
    slots = TokenSlots(8, VOCABULARY, drafts=1)
    slots.begin(1, ["a"], [], {"a": [1, 2, 3]})
    slots.keep(["a"], np.array([0]), np.array([True]))
    with pytest.raises(MalformedError, match="step 1 has not drawn"):
        slots.begin(2, ["a"], [control.Sampled(1, [[1, 2, 3]])])


def test_of_a_request_that_speculates_several_tokens_come_back() -> None:
    feedback = TokenFeedback(VOCABULARY, drafts=2)
    feedback.begin(1, step({"a": (4, 0, 4)}))
    feedback.take(1, output(a=[7, 8, 9]))
    assert feedback.begin(2, step(cached={"a": (4, 3)})) == [control.Sampled(1, [[7, 8, 9]])]
    with pytest.raises(MalformedError, match="tokens of a request"):
        feedback.take(2, output(a=[1, 2, 3, 4]))


def test_drafts_go_the_way_of_tokens_and_are_known_while_their_step_is_on_the_ring() -> None:
    feedback = TokenFeedback(VOCABULARY, drafts=2)
    feedback.begin(1, step({"a": (4, 0, 4), "b": (9, 0, 2), "c": (4, 0, 4)}))
    feedback.take(1, output(c=[3], a=[1], b=[]), {"a": [5, 6], "b": [], "c": [7]})
    assert feedback.begin(2, step(cached={"a": (4, 3)})) == [
        control.Sampled(1, [[1], [], [3]], [[5, 6], [], [7]])
    ]
    found = feedback.drafts_of(2)
    assert found == {"a": [5, 6]}
    found["a"].clear()
    assert feedback.drafts_of(2) == {"a": [5, 6]}, "vLLM's scheduler changes what it is given"


def test_drafts_of_a_request_that_is_gone_or_came_anew_are_no_longer_its() -> None:
    feedback = TokenFeedback(VOCABULARY, drafts=2)
    feedback.begin(1, step({"a": (4, 0, 4), "b": (4, 0, 4)}))
    feedback.begin(2, step({"a": (4, 0, 4)}, finished={"b"}, preempted={"a"}))
    feedback.take(1, output(a=[1], b=[2]), {"a": [5, 6], "b": [7]})
    assert feedback.drafts_of(2) == {}


def test_vllm_warming_up_leaves_no_slot() -> None:
    slots = TokenSlots(8, VOCABULARY)
    slots.keep(["_warmup_0_"], np.array([0]), np.array([True]))
    slots.begin(1, ["a"], [control.Sampled(0, [[1]])])
    assert drawn(slots) == []
