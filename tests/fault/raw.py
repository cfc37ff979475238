"""A sender made by hand, which can say anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from tests.links import FAST
from zmqpp import _engine
from zmqpp.config import TransportConfig
from zmqpp.transport import Link

HELLO, DICT, CHUNK, CONTROL, BYE, BEAT, CANCEL = 1, 2, 3, 4, 5, 6, 7
SESSION = 77


class RawSender:
    """Speaks the wire format with whatever fields a test wants."""

    def __init__(self, socket: zmq.Socket) -> None:
        self._socket = socket
        self._sequence = 0

    def message(self, kind: int, body: bytes = b"", **fields: int) -> None:
        """One message; fields replace those that would be right."""
        given = {"session": SESSION, "sequence": self._sequence, "body_size": len(body)} | fields
        self.frames(_engine.write_head(kind, **given) + body)
        self._sequence += 1

    def hello(self) -> None:
        self.message(HELLO, _engine.write_hello(-1, 0, "by hand"))

    def frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(list(frames))


@contextmanager
def raw_sender(config: TransportConfig = FAST) -> Iterator[tuple[RawSender, Link]]:
    """(a sender made by hand, the link that receives from it)."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with Link(bind=None, connect=f"127.0.0.1:{port}", config=config, previous="stage 0") as link:
            yield RawSender(socket), link
