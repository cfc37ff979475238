"""No more LoRA adapters run at once than `--max-loras`, however many batches are in flight.

vLLM lets a request in by the adapters of the step that it makes. With several batches in flight others run that are not
in it; once they are ready together, they are too many, and an assertion ends the engine.

Thread: the engine's. Source: Scheduler.schedule, _handle_blocked_waiting_request and, of vLLM 0.30,
_is_blocked_waiting_status and _try_promote_blocked_waiting_request (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["PLACES", "limit_adapters"]

_READY = "_handle_blocked_waiting_request"
_BLOCKED, _PROMOTE = "_is_blocked_waiting_status", "_try_promote_blocked_waiting_request"
PLACES = ((_READY,), (_BLOCKED, _PROMOTE))
"""Methods of Scheduler of which a version of vLLM has one group."""


def limit_adapters(scheduler: Any, most: int) -> None:
    """Whoever would be one adapter too many waits as one whose grammar is not ready does; safe to call twice."""
    if _READY in vars(scheduler) or _PROMOTE in vars(scheduler):
        return
    schedule, adapters = scheduler.schedule, RunningAdapters(scheduler)
    follow = _follow if hasattr(scheduler, _READY) else _follow_0_30
    follow(scheduler, lambda request: len(adapters.with_one_of(request)) <= most, adapters)

    def schedule_anew(*args: Any, **kwargs: Any) -> Any:
        with adapters:
            return schedule(*args, **kwargs)

    scheduler.schedule = schedule_anew


class RunningAdapters:
    """Numbers of the adapters of what runs, while a step is made. Who is let in meanwhile joins at the end."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.scheduling = False
        """A step is being made."""

    def __enter__(self) -> None:
        self._seen, self._found, self.scheduling = 0, set[int](), True

    def __exit__(self, *_: object) -> None:
        self.scheduling = False

    def with_one_of(self, request: Any) -> set[int]:
        """They, and that of `request`; of none where it has none, for it may always run."""
        if not request.lora_request:
            return set()
        running = self._scheduler.running
        self._found.update(one.lora_request.lora_int_id for one in running[self._seen :] if one.lora_request)
        self._seen = len(running)
        return self._found | {request.lora_request.lora_int_id}


def _follow(scheduler: Any, fits: Callable[[Any], bool], _adapters: RunningAdapters) -> None:
    ready = getattr(scheduler, _READY)
    setattr(scheduler, _READY, lambda request: bool(ready(request)) and fits(request))


def _follow_0_30(scheduler: Any, fits: Callable[[Any], bool], adapters: RunningAdapters) -> None:
    """It asks only of those that seem to wait for something; while it makes a step, all do."""
    blocked, promote = getattr(scheduler, _BLOCKED), getattr(scheduler, _PROMOTE)
    setattr(scheduler, _BLOCKED, lambda status: adapters.scheduling or blocked(status))

    def is_ready(request: Any) -> bool:
        return bool(not blocked(request.status) or promote(request)) and fits(request)

    setattr(scheduler, _PROMOTE, is_ready)
