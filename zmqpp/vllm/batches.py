"""Decode batches of equal size, as many as the pipeline has in flight.

vLLM's scheduler puts every request that is ready into one batch. With N batches in flight the others are then small,
and stages idle while a large one is elsewhere. Here a step that only decodes takes its share of the running requests:
of 16 over 2 stages, 8 and 8. Steps with prompts to compute are left as they are: they fill stages by themselves.

Costs one look at each running request a step. Thread: the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from zmqpp.errors import ConfigError

__all__ = ["BalancedScheduler", "balance_batches", "wants_balance"]

VARIABLE = "ZMQPP_BALANCE_BATCHES"
_NEXT_STEP = "next_decode_eligible_step"  # not in every version


def wants_balance() -> bool:
    """`ZMQPP_BALANCE_BATCHES` (1): 0 leaves vLLM's batches as they are.

    Raises:
        ConfigError: neither.
    """
    text = os.environ.get(VARIABLE, "1")
    if text not in ("0", "1"):
        raise ConfigError(f"{VARIABLE}={text!r}: must be 0 or 1")
    return text == "1"


def balance_batches(scheduler: Any, batches: int) -> None:
    """From now on `scheduler` divides what decodes among `batches` batches; safe to call twice."""
    if batches > 1 and not hasattr(scheduler, "balance"):
        scheduler.balance = Balance(scheduler, batches)


class Balance:
    """Lends vLLM's scheduler a smaller budget where a step only decodes.

    Args:
        scheduler: whose `schedule` and `update_from_output` are wrapped.
        batches: so many may be in flight.
    """

    def __init__(self, scheduler: Any, batches: int) -> None:
        self._scheduler, self._batches = scheduler, batches
        self._flying: set[int] = set()
        self._schedule: Callable[..., Any] = scheduler.schedule
        self._update: Callable[..., Any] = scheduler.update_from_output
        scheduler.schedule, scheduler.update_from_output = self.schedule, self.update

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As Scheduler.schedule."""
        scheduler, budget = self._scheduler, self._scheduler.max_num_scheduled_tokens
        share = self._share()
        scheduler.max_num_scheduled_tokens = budget if share is None else min(budget, share)
        try:
            step = self._schedule(*args, **kwargs)
        finally:
            scheduler.max_num_scheduled_tokens = budget
        if step.total_num_scheduled_tokens:
            self._flying.add(id(step))
        return step

    def update(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """As Scheduler.update_from_output, which each step comes to, a lost one too."""
        self._flying.discard(id(step))
        return self._update(step, *args, **kwargs)

    def _share(self) -> int | None:
        """How many tokens the next batch may have; None where it may compute prompts, too.

        Of 5 requests over 4 batches 2, 1, 1, 1: neither more than an even part of all that run, nor more than the
        batches still to be made leave of those that are ready.
        """
        scheduler = self._scheduler
        running, ready, widest = scheduler.running, 0, 1
        if not running or (scheduler.waiting and len(running) < scheduler.max_num_running_reqs):
            return None
        now = getattr(scheduler, "current_step", 0) + 1
        for request in running:
            drafted = len(request.spec_token_ids)
            left = (
                request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
            )
            if left > 1 + drafted:
                return None
            # With async scheduling what waits for its own token is passed over, for as many steps as there are stages.
            ready += left > 0 and now >= getattr(request, _NEXT_STEP, 0)
            widest = max(widest, 1 + drafted)
        even = -(-len(running) // self._batches)
        free = max(1, self._batches - len(self._flying))
        return max(1, min(even, -(-ready // free))) * widest


class BalancedScheduler(Scheduler):
    """The same for vLLM's own pipeline: `--scheduler-cls zmqpp.vllm.batches.BalancedScheduler`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        balance_batches(self, self.vllm_config.parallel_config.pipeline_parallel_size)
