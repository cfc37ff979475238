"""Stages that the engine misses though their process runs: they hang, or are cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator

__all__ = ["Misses"]

_ENDING_S = 1.0
"""Within which the end of a process is seen after the engine has lost its stage."""


class Misses:
    """Thread: the supervisor's."""

    def __init__(self) -> None:
        self._missed: dict[int, tuple[float, str]] = {}
        self._told = False
        self.open = ""
        """Why the engine waits, from the first one until all are there. Thread: any."""

    def note(self, stage: int, reason: str) -> None:
        """The engine has lost it; whether its process has ended too is not known yet."""
        self._missed[stage] = (time.monotonic(), reason)
        self.open = self.open or reason

    def take_due(self) -> Iterator[tuple[int, str]]:
        """Stages, with the reason, whose process would have ended by now."""
        now = time.monotonic()
        for stage, (at, reason) in list(self._missed.items()):
            if now - at >= _ENDING_S:
                del self._missed[stage]
                yield stage, reason

    def tell(self) -> None:
        """A person has been told of one."""
        self._told = True

    def clear(self) -> bool:
        """All stages are there; whether a person was told that one was not."""
        told, self._told = self._told, False
        self._missed.clear()
        self.open = ""
        return told
