"""A bad wire: a TCP relay between a sender and whoever connects, which delays, resets, loses, repeats and reorders.

with bad_wire(listen("127.0.0.1"), lambda: dial(sender.bound)) as wire, Link(bind=None, connect=wire.where) as receiver:
    wire.latency_s = lambda: 0.2
    wire.reset()
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_TICK_S = 0.01
_PIECE = 1 << 16
_GREETING = 64
_LONG, _COMMAND = 2, 4
Fault = Callable[[bytes], list[bytes]]
"""What goes on instead of a ZMTP frame, which is given with its header."""


def listen(host: str, port: int = 0) -> socket.socket:
    """Where the receiver will connect."""
    return socket.create_server((host, port))


def dial(address: str | None) -> socket.socket:
    """A connection to where the sender is bound."""
    host, _, port = str(address).removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def unreliable(seed: int, one_in: int) -> Fault:
    """Of about so many messages one is lost, repeated, or goes behind the next one."""
    chance, held = random.Random(seed), []

    def fault(frame: bytes) -> list[bytes]:
        late, held[:] = list(held), []
        kind = chance.choice(["drop", "twice", "swap"]) if chance.random() * one_in < 1 else ""
        if kind == "swap":
            held.append(frame)
            return late
        return {"drop": [], "twice": [frame, frame]}.get(kind, [frame]) + late

    return fault


class Wire:
    """What it does may be changed at any time; `reset_after` and `fault` hold for connections made from then on."""

    def __init__(self, server: socket.socket, dial: Callable[[], socket.socket]) -> None:
        self.latency_s: Callable[[], float] = lambda: 0.0
        self.reset_after: Callable[[], int | None] = lambda: None
        """How many bytes pass to the receiver before both ends are reset."""
        self.fault: Fault | None = None
        self.connections = self.resets = 0
        self.where = "{}:{}".format(*server.getsockname())
        self._server, self._dial = server, dial
        self._stop, self._reset = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._accept, name="wire")
        self._thread.start()

    def reset(self) -> None:
        """RST to both ends."""
        self._reset.set()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _accept(self) -> None:
        self._server.settimeout(5 * _TICK_S)
        with self._server:
            while not self._stop.is_set():
                with suppress(TimeoutError):
                    near, _ = self._server.accept()
                    self._serve(near)

    def _serve(self, near: socket.socket) -> None:
        with near:
            try:
                far = self._dial()
            except OSError:
                return
            self.connections += 1
            self._reset.clear()
            with far, suppress(OSError):
                if _Connection(self, near, far).run(self._stop, self._reset):
                    self.resets += 1
                    for end in (near, far):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Connection:
    def __init__(self, wire: Wire, near: socket.socket, far: socket.socket) -> None:
        self._wire, self._near, self._far = wire, near, far
        self._left = wire.reset_after()
        self._frames = _Frames(wire.fault) if wire.fault else None
        self._waiting: deque[tuple[float, bytes]] = deque()

    def run(self, stop: threading.Event, reset: threading.Event) -> bool:
        """Until one side leaves; True if both are to be reset."""
        self._near.setblocking(False)
        while not stop.is_set():
            if reset.is_set() or self._left == 0:
                return True
            due = self._is_due()
            reading = [self._near] if len(self._waiting) > 64 else [self._near, self._far]
            readable, writable, _ = select.select(reading, [self._near] if due else [], [], _TICK_S)
            if self._near in readable and not self._pass_back():
                return False
            if self._far in readable and not self._take():
                return False
            if writable:
                self._give()
        return False

    def _pass_back(self) -> bool:
        got = self._near.recv(_PIECE)
        self._far.sendall(got)
        return bool(got)

    def _take(self) -> bool:
        got = self._far.recv(_PIECE)
        bytes_on = b"".join(self._frames.feed(got)) if self._frames else got
        if bytes_on:
            earlier = self._waiting[-1][0] if self._waiting else 0.0
            self._waiting.append((max(earlier, time.monotonic() + self._wire.latency_s()), bytes_on))
        return bool(got)

    def _is_due(self) -> bool:
        return bool(self._waiting) and self._waiting[0][0] <= time.monotonic()

    def _give(self) -> None:
        due, piece = self._waiting.popleft()
        sent = self._near.send(piece[: self._left])
        if self._left is not None:
            self._left -= sent
        if sent < len(piece):
            self._waiting.appendleft((due, piece[sent:]))


class _Frames:
    """Cuts a sender's half of a ZMTP connection into frames; what is no message passes as it is."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._greeting_left, self._rest = fault, _GREETING, b""

    def feed(self, got: bytes) -> Iterator[bytes]:
        self._rest += got
        if self._greeting_left and self._rest:  # said in pieces, each of which is waited for
            piece = self._cut(self._greeting_left)
            self._greeting_left -= len(piece)
            yield piece
        while not self._greeting_left and (size := self._frame_size()) and len(self._rest) >= size:
            is_command = self._rest[0] & _COMMAND
            frame = self._cut(size)
            yield from [frame] if is_command else self._fault(frame)

    def _frame_size(self) -> int:
        if len(self._rest) < 9:
            return 2 + self._rest[1] if len(self._rest) >= 2 and not self._rest[0] & _LONG else 0
        return 9 + int.from_bytes(self._rest[1:9]) if self._rest[0] & _LONG else 2 + self._rest[1]

    def _cut(self, size: int) -> bytes:
        head, self._rest = self._rest[:size], self._rest[size:]
        return head


@contextmanager
def bad_wire(server: socket.socket, dial: Callable[[], socket.socket]) -> Iterator[Wire]:
    """`server` is closed at the end."""
    wire = Wire(server, dial)
    try:
        yield wire
    finally:
        wire.close()
