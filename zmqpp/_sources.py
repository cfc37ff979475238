"""Tensors that the engine still reads, kept alive even if nobody keeps their ticket. Thread: any."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from zmqpp import _engine

__all__ = ["Sources"]

_abandoned: list[list[Any]] = []
"""Of devices that have failed: never freed, see `SendTicket.is_abandoned` of the engine."""


class Sources:
    """What one link's sends read from."""

    def __init__(self) -> None:
        self._held: deque[tuple[_engine.SendTicket, list[Any]]] = deque()
        self._lock = threading.Lock()

    def hold(self, ticket: _engine.SendTicket | None, owners: list[Any]) -> None:
        """Keep `owners` until the engine has read them; without a ticket it has."""
        if self._held:
            self.let_go()
        if ticket is not None and (ticket.is_abandoned() or not ticket.is_settled()):
            with self._lock:
                self._held.append((ticket, owners))

    def let_go(self) -> None:
        """Free what was copied; a device that has failed may read on in what is abandoned."""
        with self._lock:
            while self._held and self._held[0][0].is_settled():
                ticket, owners = self._held.popleft()
                if ticket.is_abandoned():
                    _abandoned.append(owners)
