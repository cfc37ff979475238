"""Who connects to the port that the stage under test bound: what is no peer, and a next stage that talks nonsense."""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections import Counter

from tests.fault.zmtp import GREETING, ready
from tests.fuzz.mutation import Mutator

_NOTHING_ELSE = b"GET /pipeline HTTP/1.1\r\nHost: x\r\n\r\n"
_TALK = (
    *(
        b"",
        b"\x00\x05hello",
        b"\x04\x07\x04PING\x00\x01",
        b"\x02" + bytes(7) + b"\x04more",
        b"\x02" + b"\x7f" * 8,
    ),
    *(b"\x01\x01a\x00\x01b", b"\x04\x0a\x09SUBSCRIBE", b"\x04\x06\x05READY", b"\x00\x01\x01" * 50),
)
_TOGETHER = 64


class Strangers:
    """Each of its connections is one input: said at once, then nothing more."""

    def __init__(self, port: int, seed: int) -> None:
        self._where = ("127.0.0.1", port)
        self.random = random.Random(seed)
        handshakes = [
            GREETING + ready(kind) + talk for kind in (b"PULL", b"PUSH", b"SUB", b"REQ") for talk in _TALK
        ]
        plain = [handshake.replace(b"NULL", b"CURVE", 1) for handshake in handshakes[:3]]
        self._openings = Mutator([*handshakes, *plain, GREETING, _NOTHING_ELSE], seed)
        self.outcomes: Counter[str] = Counter()

    def crowd(self, count: int = _TOGETHER, timeout_s: float = 5.0) -> int:
        """`count` of them at once; returns how many the stage has let go of."""
        with selectors.DefaultSelector() as selector:
            for _ in range(count):
                if (connection := self._come()) is not None:
                    selector.register(connection, selectors.EVENT_READ)
            gone = 0
            deadline = time.monotonic() + timeout_s
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(0.1):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if _is_over(connection):
                        selector.unregister(connection)
                        connection.close()
                        gone += 1
            self.outcomes["kept waiting"] += len(selector.get_map())
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
        self.outcomes["dropped"] += gone
        return gone

    def _come(self) -> socket.socket | None:
        try:
            connection = socket.create_connection(self._where, timeout=5)
        except OSError:
            self.outcomes["came while the port was bound anew"] += 1
            time.sleep(0.01)
            return None
        try:
            connection.sendall(self._openings.next())
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            connection.close()
            return None
        connection.setblocking(False)
        return connection


def _is_over(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True
