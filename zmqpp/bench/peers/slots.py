"""How is a dict sent through a library that writes into the other side's registered memory?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import WAIT_S, Place

_SLOT_BYTES = 64 << 20
_SPIN_S = 300e-6
_PAUSE_S = 20e-6


class SlotRing:
    """Receive slots on each side, and counts of what was written and what may be overwritten.

    The sender writes dict n into slot n modulo the number of slots; a count that travels with it says so. The
    count back is sent along with the next dict, or by itself when half of the slots wait for it. Counts go on
    from turn to turn: one that arrives late then does no harm.
    """

    def __init__(self) -> None:
        self._place: Place | None = None
        self._slots: list[Tensors] = []
        self._sent = self._acknowledged = 0
        self._arrived = self._received = self._released = self._told = 0

    def prepare(self, like: Tensors) -> None:
        dict_bytes = sum(tensor.nbytes for tensor in like.values())
        count = min(8, max(2, _SLOT_BYTES // dict_bytes))
        self._meet()  # nothing of the turn before is under way on either side
        self._disconnect()
        self._slots = [
            {name: torch.zeros_like(tensor) for name, tensor in like.items()} for _ in range(count)
        ]
        self._released = self._told = self._received
        self._acknowledged = self._sent  # the slots that are written from now on are new
        self._connect()
        self._meet()

    def send(self, tensors: Tensors) -> None:
        self.isend(tensors)
        self.settle()

    def isend(self, tensors: Tensors) -> None:
        self._until(lambda: self._sent - self._acknowledged < len(self._slots))
        slot = self._sent % len(self._slots)
        self._sent += 1
        self._told = self._released
        self._write(slot, tensors, self._sent, self._released)

    def settle(self) -> None:
        pass

    def recv(self) -> Tensors:
        self._released = self._received
        if 2 * (self._released - self._told) >= len(self._slots):
            self._told = self._released
            self._tell(self._sent, self._released)
        self._until(lambda: self._arrived > self._received)
        self._received += 1
        return self._slots[(self._received - 1) % len(self._slots)]

    def _meet(self) -> None:
        assert self._place is not None
        self._place.swap(None)

    def _note(self, arrived: int, acknowledged: int) -> None:
        """What `_poll` learns."""
        self._arrived = max(self._arrived, arrived)
        self._acknowledged = max(self._acknowledged, acknowledged)

    def _until(self, is_true: Callable[[], bool]) -> None:
        started = time.monotonic()
        while not is_true():
            self._poll()
            waited = time.monotonic() - started
            if waited > WAIT_S:
                raise TimeoutError(f"nothing came within {WAIT_S:g} s")
            self._pause(waited)

    def _pause(self, waited_s: float) -> None:
        """Leave the cores to the library's own threads: at once, and more so after a while."""
        if waited_s < _SPIN_S:
            os.sched_yield()
        else:
            time.sleep(_PAUSE_S)

    def _connect(self) -> None:
        """Register the slots and tell the other side where they are."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Undo `_connect`; harmless before it."""
        raise NotImplementedError

    def _write(self, slot: int, tensors: Tensors, sent: int, released: int) -> None:
        """Write the dict into the other side's slot, then the counts."""
        raise NotImplementedError

    def _tell(self, sent: int, released: int) -> None:
        """Send the counts alone."""
        raise NotImplementedError

    def _poll(self) -> None:
        """Take in counts that have come."""
        raise NotImplementedError
