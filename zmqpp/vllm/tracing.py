"""A trace of all stages, asked for from the engine: their spans on one clock. Thread: the engine's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zmqpp.vllm.calls import START_TRACE
from zmqpp.watch import span
from zmqpp.watch.board import Board
from zmqpp.watch.clock import Asked
from zmqpp.watch.trace import chrome_trace

if TYPE_CHECKING:
    from zmqpp.vllm.ring import EngineRing

__all__ = ["Tracing"]


class Tracing:
    """Starts and ends the traces of one pipeline."""

    def __init__(self, ring: EngineRing, board: Board) -> None:
        self._ring, self._board = ring, board
        self._started: list[Asked] = []

    def run(self, method: str) -> list[bytes]:
        """Start a trace, or end it: then the Chrome trace, as JSON, is the one item of the list."""
        if method == START_TRACE:
            self._board.start_trace()
        asked_ns = time.monotonic_ns()
        replies: list[bytes] = self._ring.call(method).result()
        clocks = [Asked(span.decode(reply), asked_ns, time.monotonic_ns()) for reply in replies]
        if method == START_TRACE:
            self._started = clocks
            return []
        return [chrome_trace(self._board.end_trace(), self._started, clocks)]
