"""Requests whose input comes in parts (`AsyncLLM.generate` with an async generator, vLLM's realtime API), after a loss.

Between two parts such a request does not run and keeps its blocks. vLLM has no way to preempt it there: it would refuse
to reset a KV cache of which a stage has lost its share. So here the blocks are let go of, and the next part computes
all of the request anew. Until then vLLM counts by its computed tokens what of its output stays.

Thread: the engine's. Source: Scheduler._handle_stopped_request, _update_request_as_session
(vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from typing import Any

from vllm.v1.request import RequestStatus

__all__ = ["let_go_of_blocks"]

_UPDATE = "_update_request_as_session"
_ANEW = "zmqpp_computed_anew"


def let_go_of_blocks(scheduler: Any) -> None:
    """Of requests that wait for input, or have some and wait to run: their KV cache is gone with a stage."""
    for request in scheduler.requests.values():
        waits = request.status in (RequestStatus.WAITING, RequestStatus.WAITING_FOR_STREAMING_REQ)
        if not waits or not getattr(request, "resumable", False) or not request.num_computed_tokens:
            continue
        scheduler.kv_cache_manager.free(request)
        scheduler.encoder_cache_manager.free(request)
        if request.status == RequestStatus.WAITING:
            request.num_computed_tokens = 0
        else:
            setattr(request, _ANEW, True)
            _watch_updates(scheduler)


def _watch_updates(scheduler: Any) -> None:
    if _UPDATE in vars(scheduler):
        return
    update = getattr(scheduler, _UPDATE)

    def update_and_begin_anew(session: Any, part: Any) -> None:
        update(session, part)
        if vars(session).pop(_ANEW, False):
            session.num_computed_tokens = 0

    setattr(scheduler, _UPDATE, update_and_begin_anew)
