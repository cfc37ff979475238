"""A step larger than a message may be: its requests go again, in steps of fewer tokens.

A step brings what its new requests have of pictures and embeddings, each request's whole, however little of it is
computed. One that no message holds is refused where it comes in (`admission.py`); here several are too large together.

Thread: the engine's. Source: Scheduler.schedule (vllm/v1/core/sched/scheduler.py), whose budget is changed.
"""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from zmqpp.vllm.ring_future import StageLost

__all__ = ["StepBudget"]

logger = init_logger("vllm.zmqpp.executor")

_ROOM = 64 << 10  # in a message, for what is not the step's
_LEAST = 8
"""Of the budget this part is left: a picture that must be computed in one step needs some."""


class StepBudget:
    """Of vLLM's scheduler, in tokens: smaller for as long as requests wait, once a step was too large.

    Args:
        scheduler: that has requests.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._whole: int = scheduler.max_num_scheduled_tokens

    def check(self, size: int, largest: int) -> None:
        """Look at a step before it is sent.

        Args:
            size, largest: bytes, of it and of a message.
        Raises:
            StageLost: it is too large, all that run are to be scheduled again; not where that would not help.
        """
        if size + _ROOM <= largest:
            self._grow()
            return
        half = self._scheduler.max_num_scheduled_tokens // 2
        may_cut = self._scheduler.scheduler_config.enable_chunked_prefill
        if may_cut and half >= max(1, self._whole // _LEAST):
            self._shrink(size, largest, half)
            raise StageLost("a step was larger than a message")

    def _shrink(self, size: int, largest: int, half: int) -> None:
        self._scheduler.max_num_scheduled_tokens = half
        logger.warning(
            "a step of %d bytes, a message holds %d: its new requests go in steps of %d tokens; to spare that, set "
            "ZMQPP_MAX_CONTROL_BYTES to more on every stage",
            *(size, largest, half),
        )

    def _grow(self) -> None:
        """As it was, as soon as nobody waits."""
        if self._scheduler.max_num_scheduled_tokens < self._whole and not self._scheduler.waiting:
            self._scheduler.max_num_scheduled_tokens = self._whole
