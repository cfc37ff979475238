"""A peer in a process of its own that does as it is told, and can be stopped, continued and killed at any point.

with Peer() as peer:
    where = peer.open(bind="127.0.0.1:0")
    with Link(bind=None, connect=where) as link:
        peer.send(range(3), 1 << 20)
        peer.kill()
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.fault.values import assert_whole, numbered
from zmqpp.config import TransportConfig
from zmqpp.transport import Link, Route

_CONTEXT = multiprocessing.get_context("forkserver")
_PATIENCE_S = 30.0


def start_fork_server() -> None:
    """Peers are forked from a process that has imported what they need: that takes milliseconds, not seconds."""
    _CONTEXT.set_forkserver_preload(["torch", "pytest", "zmq", "zmqpp.transport", "zmqpp._tensors"])
    forkserver.ensure_running()


class Peer:
    """A process with at most one link. Each verb returns when it is done; `order` and `answer` are its halves."""

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_obey, args=(theirs, before))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0

    def open(
        self,
        *,
        bind: str | None = None,
        connect: str | None = None,
        config: TransportConfig,
        device: torch.device | None = None,
    ) -> str | None:
        """Open its link; returns where it is bound. `device`: where it puts tensors, as it numbers them."""
        return self.do("open", bind, connect, config, device)

    def send(self, numbers: Iterable[int], size: int) -> None:
        """Send dicts by `values.numbered`; done when ZeroMQ or the segment has all of them."""
        self.do("send", list(numbers), size)

    def receive(self, numbers: Iterable[int], size: int) -> None:
        """Receive dicts, check each byte, and hold their tensors."""
        self.do("receive", list(numbers), size)

    def stats(self) -> dict[str, Any]:
        """Of its link."""
        return self.do("stats")

    def do(self, verb: str, *arguments: Any) -> Any:
        """Any of `_VERBS`; what it raises is raised here."""
        self.order(verb, *arguments)
        return self.answer()

    def order(self, verb: str, *arguments: Any) -> None:
        """Begin it."""
        self._pipe.send((verb, arguments))

    def answer(self) -> Any:
        """What the last order came to. Raises EOFError when the process died of it."""
        if not self._pipe.poll(_PATIENCE_S):
            raise TimeoutError(f"peer {self.pid} did not answer within {_PATIENCE_S:g} s")
        value, error = self._pipe.recv()
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """SIGSTOP; returns when all its threads stand still."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: all(_state(task) == "T" for task in Path(f"/proc/{self.pid}/task").iterdir()))

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(_PATIENCE_S)

    def wait_end(self) -> None:
        """Return when it died by itself."""
        self._process.join(_PATIENCE_S)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self.kill()
        self._process.join(_PATIENCE_S)
        self._process.close()
        self._pipe.close()


def until(holds: Callable[[], Any], within_s: float = 10.0) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come true within {within_s:g} s")
        time.sleep(0.002)


@contextmanager
def within(seconds: float):
    """What is inside must take no longer."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds, f"took {took:.2f} s, at most {seconds:g} s were allowed"


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


# ---- in the peer's process -------------------------------------------------------------------------------


class _Obeying:
    """What a verb may use: the link, and the tensors that are held."""

    link: Link
    held: list[dict[str, Any]]

    def __init__(self) -> None:
        self.held = []

    def open(
        self,
        bind: str | None,
        connect: str | None,
        config: TransportConfig,
        device: torch.device | None = None,
    ) -> str | None:
        self.link = Link(bind=bind, connect=connect, config=config, name="peer", device=device)
        return self.link.bound

    def wait_peers(self) -> None:
        self.link.wait_peers(10)

    def send(self, numbers: list[int], size: int) -> None:
        tickets = [self.link.isend_dict(numbered(i, size)) for i in numbers]
        for ticket in tickets:
            ticket.wait_sent(20)

    def send_control(self, body: bytes) -> None:
        self.link.send_control(body, route=Route.LINK)

    def receive(self, numbers: list[int], size: int) -> None:
        for i in numbers:
            got = self.link.recv_dict(timeout_s=20)
            assert_whole(got, i, size)
            self.held.append(got)

    def recv_control(self) -> bytes:
        return self.link.recv_control(20).body

    def drop(self) -> None:
        self.held.clear()

    def stats(self) -> dict[str, Any]:
        return self.link.stats()

    def close(self) -> None:
        self.link.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.link, *arguments)

    def call_free(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def _obey(pipe: Connection, before: Callable[[], None] | None) -> None:
    if before is not None:
        before()
    obeying = _Obeying()
    while True:
        try:
            verb, arguments = pipe.recv()
        except EOFError:  # the test is over, or died
            os._exit(0)
        try:
            pipe.send((getattr(obeying, verb)(*arguments), None))
        except Exception as error:
            pipe.send((None, error))
