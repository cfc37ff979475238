"""Requests that cannot go on after a loss, as what they need went with the stage: they get an error, all others go on.

Thread: vLLM's input thread checks, everything else is the engine's.
Source: EngineCoreProc._handle_request_preproc_error (vllm/v1/engine/core.py).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from zmqpp.vllm.late_queries import LateQueries
from zmqpp.vllm.missing_adapters import MissingAdapters

__all__ = ["Bereft"]

logger = init_logger("vllm.zmqpp.recovery")


class Bereft:
    """What requests lean on besides their own tokens, as far as it may be gone."""

    def __init__(self) -> None:
        self.adapters = MissingAdapters()
        self.queries = LateQueries()

    def check(self, request: Any) -> None:
        """Raises UnsupportedError: vLLM's Request leans on what is gone."""
        self.adapters.check(request)
        self.queries.check(request)

    def end(self, engine: Any) -> None:
        """After a loss: those of vLLM's `engine` that do."""
        tell = getattr(engine, "_send_error_outputs_to_client", None)
        if tell is None:
            return  # `LLM` in its own process has no clients
        requests = list(engine.scheduler.requests.values())
        for what, ended in (("adapter", self.adapters.of(requests)), ("query", self.queries.lose(requests))):
            clients: defaultdict[int, list[str]] = defaultdict(list)
            for request in ended:
                clients[request.client_index].append(request.request_id)
            for client, ids in clients.items():
                engine.scheduler.finish_requests(ids, RequestStatus.FINISHED_ERROR)
                tell(ids, client)
                logger.warning("%d requests end with an error: their %s was lost", len(ids), what)
