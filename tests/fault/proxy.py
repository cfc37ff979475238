"""A wrapping link: a real ZeroMQ relay between a sender and a receiver, which does something wrong to one message.

with proxied(sender.bound, Nth(CHUNK, 2), drop) as where, Link(bind=None, connect=where) as receiver:
    ...
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import zmq

from tests.fault.raw import DICT

AT = {
    "magic": 0,
    "version": 4,
    "kind": 6,
    "route": 7,
    "flags": 8,
    "epoch": 12,
    "session": 16,
    "sequence": 24,
    "tag": 32,
    "offset": 40,
    "total": 48,
    "body size": 56,
    "checksum": 60,
}
"""Where the fields of a head lie: docs/wire_format.md."""
HEAD_SIZE = 64
_INLINE = 1
_TICK_MS = 20


@dataclass(frozen=True)
class Pause:
    """Nothing passes for so long."""

    seconds: float


@dataclass(frozen=True)
class Behind:
    """This message goes behind the next one, or last if none comes."""

    frame: bytes


Step = bytes | Pause | Behind
Fault = Callable[[bytes], list[Step]]
"""What goes on instead of a message."""


def drop(_: bytes) -> list[Step]:
    """It never arrives."""
    return []


def duplicate(frame: bytes) -> list[Step]:
    """It arrives twice."""
    return [frame, frame]


def swap(frame: bytes) -> list[Step]:
    """It arrives behind the next one."""
    return [Behind(frame)]


def delay(seconds: float) -> Fault:
    """It arrives later, and so does all that follows."""
    return lambda frame: [Pause(seconds), frame]


def truncate(size: int) -> Fault:
    """Only its first `size` bytes arrive; if negative, all but so many of the last."""
    return lambda frame: [frame[:size]]


def corrupt(at: int, mask: int = 0xFF) -> Fault:
    """One byte arrives as another."""

    def fault(frame: bytes) -> list[Step]:
        damaged = bytearray(frame)
        damaged[at] ^= mask
        return [bytes(damaged)]

    return fault


def faithful(frame: bytes) -> list[Step]:
    """It arrives as it is."""
    return [frame]


@dataclass
class Nth:
    """The `n`-th message of a kind, from 0; of dicts those with the payload inline, or those without, if asked for."""

    kind: int
    n: int = 0
    inline: bool | None = None
    _seen: int = field(default=0, repr=False)

    def __call__(self, frame: bytes) -> bool:
        if frame[AT["kind"]] != self.kind or not self._is_sort(frame):
            return False
        self._seen += 1
        return self._seen == self.n + 1

    def _is_sort(self, frame: bytes) -> bool:
        if self.kind != DICT or self.inline is None:
            return True
        (flags,) = struct.unpack_from("<I", frame, AT["flags"])
        return bool(flags & _INLINE) == self.inline


@contextmanager
def proxied(sender: str | None, which: Callable[[bytes], bool], fault: Fault) -> Iterator[str]:
    """Where a receiver shall connect to get what `sender` sends, with the fault in the messages picked by `which`."""
    stop = threading.Event()
    with zmq.Context() as context:
        with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
            pull.linger = push.linger = 0
            port = push.bind_to_random_port("tcp://127.0.0.1")
            relay = _Relay(pull, push, which, fault, stop)
            pull.connect(str(sender))
            thread = threading.Thread(target=relay.run, name="relay")
            thread.start()
            try:
                yield f"127.0.0.1:{port}"
            finally:
                stop.set()
                thread.join()


class _Relay:
    """Runs in its thread until it is stopped, or one side leaves; then it leaves the other one too."""

    def __init__(
        self,
        pull: zmq.Socket,
        push: zmq.Socket,
        which: Callable[[bytes], bool],
        fault: Fault,
        stop: threading.Event,
    ) -> None:
        self._pull, self._push, self._which, self._fault, self._stop = pull, push, which, fault, stop
        self._held: list[bytes] = []
        self._monitors = [
            pull.get_monitor_socket(zmq.EVENT_DISCONNECTED),
            push.get_monitor_socket(zmq.EVENT_DISCONNECTED),
        ]
        self._poller = zmq.Poller()
        for each in (pull, *self._monitors):
            self._poller.register(each, zmq.POLLIN)

    def run(self) -> None:
        try:
            self._relay()
        finally:
            self._close()

    def _relay(self) -> None:
        upstream, downstream = self._monitors
        while not self._stop.is_set():
            ready = dict(self._poller.poll(_TICK_MS))
            if downstream in ready:
                break
            if self._pull in ready:
                self._pass(self._pull.recv())
            elif upstream in ready:
                break
        for frame in self._held:
            self._send(frame)

    def _close(self) -> None:
        for each in (self._pull, self._push):
            each.disable_monitor()
        for monitor in self._monitors:
            monitor.close(linger=0)
        self._pull.close()
        self._push.close(linger=500)  # what the receiver can still take

    def _pass(self, frame: bytes) -> None:
        held, self._held = self._held, []
        for step in self._fault(frame) if self._which(frame) else faithful(frame):
            if isinstance(step, Pause):
                self._sleep(step.seconds)
            elif isinstance(step, Behind):
                self._held.append(step.frame)
            else:
                self._send(step)
        for earlier in held:
            self._send(earlier)

    def _send(self, frame: bytes) -> None:
        while not self._stop.is_set() and not self._monitors[1].poll(0):
            try:
                self._push.send(frame, zmq.DONTWAIT)
                return
            except zmq.Again:  # No room, or the receiver is about to be missed.
                self._push.poll(_TICK_MS, zmq.POLLOUT)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.is_set():
            time.sleep(0.01)
