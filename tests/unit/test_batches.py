"""Decodes are divided among the batches in flight: by vLLM's own scheduler, under zmqpp's share."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from tests.unit.real_scheduler import PROMPT, add_requests, answer_step, make_scheduler
from zmqpp.errors import ConfigError
from zmqpp.vllm.batches import BalancedScheduler, balance_batches, wants_balance


def _sizes(scheduler: Any, batches: int, steps: int) -> list[int]:
    """How many requests each step has, with `batches` of them in flight as vLLM's engine keeps them."""
    flying: deque[Any] = deque()
    sizes = []
    for _ in range(steps):
        step = scheduler.schedule()
        if step.num_scheduled_tokens:
            flying.append(step)
        sizes.append(len(step.num_scheduled_tokens))
        if len(flying) == batches or not step.num_scheduled_tokens:
            answer_step(scheduler, flying.popleft())
    return sizes


def test_what_decodes_is_divided_evenly() -> None:
    scheduler = make_scheduler(2)
    balance_batches(scheduler, 2)
    add_requests(scheduler, range(16))
    sizes = _sizes(scheduler, 2, 12)
    assert sizes[0] == 16, "prompts are not divided"
    assert set(sizes[-6:]) == {8}


def test_vllm_alone_puts_all_that_is_ready_into_one_batch() -> None:
    """Else there is nothing to balance, and the module may go."""
    scheduler = make_scheduler(2)
    add_requests(scheduler, range(16))
    assert 16 in _sizes(scheduler, 2, 12)[-6:]


@pytest.mark.parametrize(("requests", "batches", "largest"), [(1, 2, 1), (3, 2, 2), (5, 4, 2), (13, 3, 5)])
def test_numbers_that_do_not_divide(requests: int, batches: int, largest: int) -> None:
    scheduler = make_scheduler(batches)
    balance_batches(scheduler, batches)
    add_requests(scheduler, range(requests))
    sizes = _sizes(scheduler, batches, 10 * batches)
    assert max(sizes[2 * batches :]) == largest
    even = sizes[5 * batches :]
    assert {size for size in even if size} <= {largest, largest - 1}
    assert sum(even) / sum(1 for size in even if size) == pytest.approx(
        requests / min(requests, batches), rel=0.2
    )


def test_a_prompt_that_comes_meanwhile_is_not_held_back() -> None:
    scheduler = make_scheduler(2)
    balance_batches(scheduler, 2)
    add_requests(scheduler, range(8))
    _sizes(scheduler, 2, 6)
    add_requests(scheduler, range(8, 16))
    step = scheduler.schedule()
    assert sum(step.num_scheduled_tokens.values()) >= 8 * PROMPT
    assert scheduler.max_num_scheduled_tokens == 256, "the budget is vLLM's again"


def test_prompts_that_must_wait_for_a_place_do_not_undo_the_balance() -> None:
    scheduler = make_scheduler(2, max_num_seqs=8)
    balance_batches(scheduler, 2)
    add_requests(scheduler, range(16))
    assert set(_sizes(scheduler, 2, 12)[-6:]) == {4}


def test_vllms_own_pipeline_can_have_the_same() -> None:
    scheduler = make_scheduler(2, BalancedScheduler)
    add_requests(scheduler, range(16))
    assert set(_sizes(scheduler, 2, 12)[-6:]) == {8}


def test_one_batch_in_flight_has_all() -> None:
    scheduler = make_scheduler(1)
    balance_batches(scheduler, 1)
    add_requests(scheduler, range(16))
    assert set(_sizes(scheduler, 1, 6)) == {16}


def test_the_switch_is_on_off_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQPP_BALANCE_BATCHES", raising=False)
    assert wants_balance()
    monkeypatch.setenv("ZMQPP_BALANCE_BATCHES", "0")
    assert not wants_balance()
    monkeypatch.setenv("ZMQPP_BALANCE_BATCHES", "yes")
    with pytest.raises(ConfigError, match="ZMQPP_BALANCE_BATCHES='yes'"):
        wants_balance()


def test_async_scheduling_divides_what_may_decode_among_the_stages() -> None:
    """One batch more is in flight than there are stages, but none of its requests waits for its own token."""
    scheduler = make_scheduler(2, AsyncScheduler)
    scheduler.use_v2_model_runner = True
    balance_batches(scheduler, 2)
    add_requests(scheduler, range(16))
    assert set(_sizes(scheduler, 3, 14)[-6:]) == {8}
