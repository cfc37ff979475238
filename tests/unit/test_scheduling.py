"""What a step carries, as vLLM's own scheduler makes it for a pipeline: nothing that its stages know."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.outputs import DraftTokenIds

from tests.unit.real_scheduler import PROMPT, add_requests, answer_step, make_scheduler
from zmqpp.vllm import plain_step, scheduling
from zmqpp.vllm.drafts import follow_up_drafts
from zmqpp.vllm.large_steps import StepBudget
from zmqpp.vllm.plain_step import PlainStep
from zmqpp.vllm.ring_future import StageLost
from zmqpp.vllm.scheduling import adapt_scheduler

pytestmark = pytest.mark.vllm


def _config(**changes: Any) -> SimpleNamespace:
    plain = {"speculative_config": None, "lora_config": None, "use_v2_model_runner": False}
    return SimpleNamespace(**(plain | changes))


def _decodes(scheduler: Any, batches: int, count: int) -> list[Any]:
    """The steps of `count` rounds that have no new requests, with `batches` in flight; a dry round between."""
    flying: deque[Any] = deque()
    found = []
    for _ in range(count):
        while len(flying) < batches and (step := scheduler.schedule()).num_scheduled_tokens:
            flying.append(step)
            if not step.scheduled_new_reqs:
                found.append(step)
        answer_step(scheduler, flying.popleft())
    return found


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_steps_that_only_decode_are_plain_with_any_number_in_flight(batches: int) -> None:
    scheduler = make_scheduler(3)
    adapt_scheduler(scheduler, _config(), batches)
    adapt_scheduler(scheduler, _config(), batches)
    add_requests(scheduler, range(7))
    steps = _decodes(scheduler, 3, 12)
    assert len(steps) > 10
    for step in steps:
        cached = step.scheduled_cached_reqs
        assert cached.all_token_ids == {}
        assert cached.new_token_ids and all(len(tokens) == 1 for tokens in cached.new_token_ids)
        assert type(plain_step.decode(plain_step.encode(step))) is PlainStep


def test_vllm_alone_repeats_all_tokens_with_each_step() -> None:
    """Else there is nothing to leave out, and EveryRequest may go."""
    scheduler = make_scheduler(3)
    add_requests(scheduler, range(7))
    assert any(step.scheduled_cached_reqs.all_token_ids for step in _decodes(scheduler, 3, 12))


def test_model_runner_v2_keeps_them() -> None:
    scheduler = make_scheduler(2)
    before = scheduler.prev_step_scheduled_req_ids
    adapt_scheduler(scheduler, _config(use_v2_model_runner=True), 1)
    assert scheduler.prev_step_scheduled_req_ids is before


def _reset_under_way(scheduler: Any) -> list[int]:
    """How many tokens two requests have in all: as caches are reset with a step of each on the ring, and then."""
    flying: deque[Any] = deque()
    for name in range(2):
        scheduler.max_num_running_reqs = name + 1
        add_requests(scheduler, range(name, name + 1))
        flying.append(scheduler.schedule())
    answer_step(scheduler, flying.popleft())
    flying.append(scheduler.schedule())
    requests = list(scheduler.requests.values())
    assert all(request.num_in_flight_tokens for request in requests)
    found = [sum(request.num_output_tokens for request in requests)]
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    for _ in range(2):
        flying.append(scheduler.schedule())
        answer_step(scheduler, flying.popleft())
        found.append(sum(request.num_output_tokens for request in requests))
    return found


@pytest.mark.parametrize("batches", [1, 2])
def test_tokens_on_the_ring_when_caches_are_reset_are_kept(batches: int) -> None:
    """They are drawn: a seeded generator would go on from the next number."""
    scheduler = make_scheduler(2)
    adapt_scheduler(scheduler, _config(), batches)
    adapt_scheduler(scheduler, _config(), batches)
    assert _reset_under_way(scheduler) == [1, 2, 3]


def test_vllm_alone_draws_them_again() -> None:
    """Else nothing has to be kept."""
    assert _reset_under_way(make_scheduler(2)) == [1, 1, 1]


def test_a_preempted_request_takes_no_drafts() -> None:
    """Preempted meanwhile, it would have them computed before the token in front of them is there."""
    scheduler = make_scheduler(2)
    adapt_scheduler(scheduler, _config(), 1)
    follow_up_drafts(scheduler, ahead=False)
    add_requests(scheduler, range(1))
    drafts = DraftTokenIds(["0"], [[7, 7, 7]])
    answer_step(scheduler, scheduler.schedule(), zmqpp_drafts=drafts)
    step = scheduler.schedule()
    assert step.total_num_scheduled_tokens == 4, "a request that runs takes them"
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    answer_step(scheduler, step, zmqpp_drafts=drafts)
    assert scheduler.schedule().total_num_scheduled_tokens == PROMPT + 2
    assert scheduler.schedule().total_num_scheduled_tokens == 0


def _run_with_adapters(adapt: bool) -> int:
    """How many of eight requests for three adapters, two of which may run at once, end while batches are in flight."""
    limited = {"enable_lora": True, "max_loras": 2, "max_num_seqs": 8, "max_num_batched_tokens": PROMPT}
    scheduler = make_scheduler(3, **limited)
    if adapt:
        for _ in range(2):
            adapt_scheduler(scheduler, _config(lora_config=scheduler.lora_config), 3)
    add_requests(scheduler, range(8), adapters=3, tokens=10)
    requests = list(scheduler.requests.values())
    flying: deque[Any] = deque()
    for _ in range(3000):
        while len(flying) < 3 and (step := scheduler.schedule()).num_scheduled_tokens:
            flying.append(step)
        running = {one.lora_request.lora_int_id for one in scheduler.running}
        assert not adapt or len(running) <= 2
        if not flying:
            break
        answer_step(scheduler, flying.popleft())
    return sum(request.is_finished() for request in requests)


def test_no_more_adapters_run_at_once_than_may() -> None:
    assert _run_with_adapters(adapt=True) == 8


def test_vllm_alone_runs_too_many() -> None:
    """Else nobody has to keep them out."""
    with pytest.raises(AssertionError):
        _run_with_adapters(adapt=False)


class WithoutBlocks:
    """A scheduler as far as this is about it: one request runs, one comes back."""

    def _make_cached_request_data(self) -> CachedRequestData:
        return CachedRequestData(["runs", "back"], {"back"}, [], {}, [None, None], [0, 0], [0, 0])


def test_requests_of_a_model_without_a_kv_cache_go_on_without_blocks() -> None:
    scheduler = WithoutBlocks()
    for _ in range(2):
        scheduling._resume_without_blocks(scheduler)
    assert scheduler._make_cached_request_data().new_block_ids == [None, ()]


def test_a_step_that_no_message_holds_goes_again_in_smaller_ones() -> None:
    """Until nobody waits; a budget of next to nothing is no way out."""
    may_cut = SimpleNamespace(enable_chunked_prefill=True)
    scheduler = SimpleNamespace(max_num_scheduled_tokens=256, waiting=[1], scheduler_config=may_cut)
    budget, largest = StepBudget(scheduler), 1 << 20
    for left in (128, 64, 32):
        budget.check(1000, largest)
        with pytest.raises(StageLost):
            budget.check(largest, largest)
        assert scheduler.max_num_scheduled_tokens == left
    budget.check(largest, largest)  # whoever sends it says so
    scheduler.waiting = []
    budget.check(1000, largest)
    assert scheduler.max_num_scheduled_tokens == 256
