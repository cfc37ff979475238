"""Stages of other zmqpp versions are refused: another wire format, another stage protocol, another vLLM."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from tests.integration.serving import FLAGS
from tests.integration.test_mistakes import assert_one_line, stage
from tests.integration.zygote import Zygote
from zmqpp import _engine
from zmqpp.models import docs_llama
from zmqpp.pipeline.ports import free_base_port

HELLO = 1


@contextmanager
def sender_of_another_version(port: int) -> Iterator[None]:
    """A PUSH that greets in the next wire version, to whoever connects."""
    body = _engine.write_hello(-1, 0, "stage of tomorrow")
    head = bytearray(_engine.write_head(HELLO, session=7, body_size=len(body)))
    struct.pack_into("<H", head, 4, _engine.WIRE_VERSION + 1)
    stop = threading.Event()

    def greet() -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.linger = 0
            socket.bind(f"tcp://127.0.0.1:{port}")
            while not stop.wait(0.2):
                if socket.poll(0, zmq.POLLOUT):
                    socket.send(bytes(head) + body)

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("index", [0, 1])
def test_a_peer_with_another_wire_version_is_refused(zygote: Zygote, index: int) -> None:
    port = free_base_port(4)
    upstream = port + (2 if index == 0 else 0)
    with sender_of_another_version(upstream):
        ended = zygote.run(["serve", str(docs_llama()), *stage(index, 2, port), *FLAGS], within_s=60)
    versions = (f"version {_engine.WIRE_VERSION + 1}", f"version {_engine.WIRE_VERSION}")
    assert_one_line(ended, "stage 1" if index == 0 else "stage 0", *versions)
