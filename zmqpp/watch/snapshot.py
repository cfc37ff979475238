"""The engine's status, left in a file for the HTTP server beside it: readable also while the engine hangs.

vLLM's API server names the file in `ZMQPP_STATUS_FILE` before it starts its engine. Written whole and renamed,
so that a reader never sees half of it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from zmqpp.watch.board import Board
from zmqpp.watch.status import PipelineStatus

__all__ = ["STATUS_VARIABLE", "Publisher", "read"]

STATUS_VARIABLE = "ZMQPP_STATUS_FILE"
_AT_LEAST_S = 5.0
_AT_MOST_S = 0.5

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PipelineStatus)


class Publisher:
    """Writes `board` when it has changed; without the variable it does nothing. Thread: the ring's watch thread."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._path = os.environ.get(STATUS_VARIABLE, "")
        self._version = -1
        self._written_s = 0.0

    def publish_if_due(self) -> None:
        """Twice a second while things change, every few seconds otherwise."""
        age_s = time.monotonic() - self._written_s
        if age_s >= (_AT_MOST_S if self._board.version != self._version else _AT_LEAST_S):
            self.publish()

    def publish(self) -> None:
        """Write it now; a full disk disturbs nothing but the status."""
        if not self._path:
            return
        self._version, self._written_s = self._board.version, time.monotonic()
        part = Path(f"{self._path}.part")
        try:
            part.write_bytes(_encoder.encode(self._board.status()))
            part.replace(self._path)
        except OSError:
            pass


def read() -> PipelineStatus | None:
    """What was published last; None before there was anything."""
    path = os.environ.get(STATUS_VARIABLE, "")
    try:
        return _decoder.decode(Path(path).read_bytes()) if path else None
    except (OSError, msgspec.DecodeError):
        return None
