"""What must a way of moving dicts between two processes offer, so that it can be measured?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from zmqpp.bench.device import CPU
from zmqpp.bench.payload import Tensors

WAIT_S = 20.0
"""No operation waits longer: what takes that long has failed."""

IN_FLIGHT = 4
"""Dicts that a stream has on their way at once, where a transport can send without waiting."""


class Unavailable(Exception):
    """This transport cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Place:
    """Where a transport opens: one of two processes on one host."""

    far: bool
    """The process that sends back or acknowledges what it receives."""
    folder: Path
    """Private to the run, for sockets; removed at its end."""
    swap: Callable[[Any], Any]
    """Gives the other side's value for ours; both sides must call it the same number of times."""
    device: torch.device = CPU
    """Where what is received shall be."""

    @property
    def name(self) -> str:
        return "far" if self.far else "near"


class Transport(Protocol):
    """One side of it. Both processes call open, then for each turn prepare and its traffic, and close at the end.

    On a CUDA device everything is in the order of the current stream, as with torch's own collectives: what `recv`
    gives is there for what the stream does next, and what is sent may be overwritten by what it does after
    `settle` or `send`. The measurement waits for the stream; a transport need not.

    A transport that waits must give up after `WAIT_S`, and use no CPU while it is not called.
    """

    def open(self, place: Place) -> str:
        """Connect to the other side; returns a remark for the table, or "". Raises Unavailable."""

    def prepare(self, like: Tensors) -> None:
        """Dicts shaped like this one come next, both ways. Not timed: memory may be made ready here."""

    def send(self, tensors: Tensors) -> None:
        """Returns when the transport needs no more calls to deliver them; they stay unchanged until they arrived."""

    def isend(self, tensors: Tensors) -> None:
        """Start sending, waiting only while too much is in flight; they stay unchanged until they arrived."""

    def settle(self) -> None:
        """Return when what `isend` started needs no more calls."""

    def recv(self) -> Tensors:
        """The next dict; valid until the next call of `recv`, and while the caller sends it on."""

    def close(self) -> None:
        """Free everything; must also work half-opened."""


class Blocking:
    """What a transport does that has no sends in flight of its own and needs no preparation."""

    def prepare(self, like: Tensors) -> None:
        pass

    def send(self, tensors: Tensors) -> None:
        raise NotImplementedError

    def isend(self, tensors: Tensors) -> None:
        self.send(tensors)

    def settle(self) -> None:
        pass
