"""What a person asks of a running pipeline: replace stages, take no new requests, end. One at a time.

zmqpp restart ── Unix socket ──> order_server (a thread) ── Orders ──> Supervisor (main thread)
              <── a line each ── Order.say ──────────────────────────────────┘
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zmqpp.errors import ConfigError

__all__ = ["Drain", "Entrance", "Order", "Orders", "Restart", "Resume"]


class Entrance(Protocol):
    """Where requests come in. Thread: any."""

    @property
    def running(self) -> int:
        """Requests that were let in and have no whole answer yet."""
        ...

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        ...

    def drain(self) -> None:
        """From now on refuse new ones."""
        ...

    def resume(self) -> None:
        """Let them in again."""
        ...

    def hold(self) -> None:
        """From now on let new ones wait."""
        ...

    def release(self) -> None:
        """Let those in."""
        ...


@dataclass
class Order:
    """One of them, and what is told of it. Thread: `say` and `finish` the supervisor's, `told` any."""

    _told: queue.SimpleQueue[tuple[str, int | None]] = field(default_factory=queue.SimpleQueue, init=False)
    is_finished: bool = field(default=False, init=False)

    def say(self, line: str) -> None:
        """A line for who asked."""
        self._told.put((line, None))

    def finish(self, code: int, line: str = "") -> None:
        """The last one, with the exit code of the command; only the first call counts."""
        if not self.is_finished:
            self.is_finished = True
            self._told.put((line, code))

    def told(self) -> tuple[str, int | None]:
        """The next line; with a code where it is the last. Blocks."""
        return self._told.get()


@dataclass
class Restart(Order):
    """Replace stages, in this order; stage 0 once the requests that run are done."""

    stages: Sequence[int | str] | None
    """None: all, from the last one to stage 0; with replicas names such as `1.0`."""
    flags: list[str] = field(default_factory=list)
    """After those of the plan; none = as it runs now."""
    environment: dict[str, str] = field(default_factory=dict)
    drain_s: float = 600.0
    """For the requests that run, before stage 0 is replaced."""


@dataclass
class Drain(Order):
    """Take no new requests, and wait for those that run."""

    timeout_s: float | None = None
    stop: bool = False
    """End the pipeline then."""


@dataclass
class Resume(Order):
    """Take requests again."""


class Orders:
    """Thread: any. The one that is being carried out, or waits to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Order | None = None
        self._fresh = False
        self._closed = ""
        self.state = "starting"
        """Of the pipeline: while it starts, orders wait."""

    def submit(self, order: Order) -> None:
        """Raises ConfigError while another one is under way, or when none is taken any more."""
        with self._lock:
            if self._closed:
                raise ConfigError(self._closed)
            if self._current is not None and not self._current.is_finished:
                raise ConfigError(f"another {_name(self._current)} is under way: try again when it is done")
            self._current = order
            self._fresh = True
            if self.state in ("starting", "restarting"):
                order.say(f"waiting for the pipeline: it is {self.state}")

    def take(self) -> Order | None:
        """A new one, once."""
        with self._lock:
            if self._current is None or not self._fresh:
                return None
            self._fresh = False
            return self._current

    def close(self, reason: str) -> None:
        """Take no more; the one under way ends with `reason`."""
        with self._lock:
            self._closed = reason
            current = self._current
        if current is not None:
            current.finish(1, reason)


def _name(order: Order) -> str:
    return type(order).__name__.lower()
