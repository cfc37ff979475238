"""What the engine's scheduler does otherwise, from when the pipeline serves.

Thread: the engine's. Source: Scheduler.reset_prefix_cache, _make_cached_request_data (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zmqpp.vllm.adapter_slots import limit_adapters
from zmqpp.vllm.batches import balance_batches
from zmqpp.vllm.drafts import follow_up_drafts
from zmqpp.vllm.large_steps import StepBudget
from zmqpp.vllm.runner_choice import runner_of

__all__ = ["adapt_scheduler"]


def adapt_scheduler(scheduler: Any, config: Any, batches: int) -> Callable[[int, int], None]:
    """Before the first step; safe to call twice. Gives what looks at the size of each step.

    Args:
        scheduler: of vLLM's engine, whose configuration is `config`.
        batches: decodes are divided among so many; 1 leaves them as they are.
    """
    if config.speculative_config is not None:
        follow_up_drafts(scheduler, config.scheduler_config.async_scheduling)
    balance_batches(scheduler, batches)
    if not scheduler.kv_cache_config.kv_cache_groups:
        _resume_without_blocks(scheduler)
    _keep_what_is_drawn(scheduler)
    if config.lora_config is not None:
        limit_adapters(scheduler, config.lora_config.max_loras)
    if runner_of(config) == "V1":
        scheduler.prev_step_scheduled_req_ids = EveryRequest()
    return StepBudget(scheduler).check


def _resume_without_blocks(scheduler: Any) -> None:
    """A model without a KV cache has none to give to a request that goes on after a loss.

    vLLM resumes what it preempted for want of blocks, and so takes it that there are some.
    """
    if "_make_cached_request_data" in vars(scheduler):
        return
    make = scheduler._make_cached_request_data

    def with_none(*args: Any, **kwargs: Any) -> Any:
        cached = make(*args, **kwargs)
        cached.new_block_ids = [
            () if blocks is None and name in cached.resumed_req_ids else blocks
            for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True)
        ]
        return cached

    scheduler._make_cached_request_data = with_none


def _keep_what_is_drawn(scheduler: Any) -> None:
    """A reset of caches preempts what runs; tokens of it that are on the ring count.

    vLLM drops them and computes them again: a seeded generator has drawn for them already, and would go on with other
    tokens than in one process, which has no step under way then. What is preempted for want of blocks keeps them.
    """
    if "reset_prefix_cache" in vars(scheduler):
        return
    reset = scheduler.reset_prefix_cache

    def reset_and_keep(reset_running_requests: bool = False, *args: Any, **kwargs: Any) -> Any:
        running = [request for request in scheduler.running if not _is_given_up(request)]
        done = reset(reset_running_requests, *args, **kwargs)
        for request in running if reset_running_requests else ():
            request.drop_stale_output = False
        return done

    scheduler.reset_prefix_cache = reset_and_keep


def _is_given_up(request: Any) -> bool:
    """It runs again after a loss, and steps of before it did not come to the scheduler yet."""
    return bool(getattr(request, "num_stale_output_tokens", 0))


class EveryRequest(set[str]):
    """The requests of the step before, for a scheduler that repeats all tokens of the others with a step.

    Model Runner V1 reads those only where it schedules asynchronously, which it does not do over external stages. With
    several batches in flight no request is ever in the step before: each step would carry, and copy, the whole of what
    its requests have said so far.
    """

    def __contains__(self, request: object) -> bool:
        return True

    def clear(self) -> None:
        """Nothing is kept."""

    def update(self, *requests: Any) -> None:
        """Nothing is kept."""
