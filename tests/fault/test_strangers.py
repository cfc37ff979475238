"""What is no peer, at the bind port or where the sender should be: it is dropped, and the real peer goes on."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import replace

import pytest

from tests.fault.peer import within
from tests.fault.zmtp import GREETING, is_dropped, port_of, ready, stranger
from tests.links import ANY_PORT, FAST
from zmqpp.errors import ConnectError, ConnectTimeout
from zmqpp.transport import Link, Route

QUICK = replace(FAST, handshake_s=0.3)
DROPPED_S = QUICK.handshake_s + 1.5

HTTP = b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: probe\r\nAccept: */*\r\n\r\n"
_NOISE = random.Random(5)
TLS = bytes.fromhex("16030102000100" + "01fc0303") + _NOISE.randbytes(508)  # a record with a client hello
SILENT = {
    "nothing": b"",
    "the first byte of a greeting": GREETING[:1],
    "half a signature": GREETING[:5],
    "a signature": GREETING[:10],
    "half a greeting": GREETING[:32],
    "a greeting and no READY": GREETING,
    "half a READY": GREETING + ready(b"PULL")[:9],
}
"""What a half-open connection may have said before it fell silent."""
WRONG = {
    "HTTP": HTTP,
    "TLS": TLS,
    "noise": _NOISE.randbytes(300),
    "ZMTP 1": b"\x01\x00" + b"\x05\x00GET /",
    "ZMTP 2": b"\xff" + bytes(8) + b"\x7f\x01\x07\x00\x00",
    "another mechanism": GREETING[:12] + b"PLAIN".ljust(20, b"\0") + GREETING[32:],
    "a PUB": GREETING + ready(b"PUB"),
    "a second PUSH": GREETING + ready(b"PUSH"),
    "noise for a READY": GREETING + b"\x04\x20" + _NOISE.randbytes(32),
}
"""What cannot become a peer."""


@pytest.mark.parametrize("said", SILENT)
def test_half_open_connection_is_dropped_and_the_receiver_gets_in(said: str) -> None:
    with Link(bind=ANY_PORT, connect=None, config=QUICK) as sender:
        with stranger(sender.bound, SILENT[said]) as before:
            with Link(bind=None, connect=sender.bound, config=QUICK) as receiver:
                with within(DROPPED_S):
                    sender.wait_peers(5)
                    assert is_dropped(before, DROPPED_S)
                with stranger(sender.bound, SILENT[said]) as after:
                    with within(DROPPED_S):
                        assert is_dropped(after, DROPPED_S)
                sender.send_dict({"x": 1})
                assert receiver.recv_dict() == {"x": 1}
                assert sender.next_error() is None


@pytest.mark.parametrize("said", WRONG)
def test_stranger_at_the_bind_port_is_dropped(said: str) -> None:
    with Link(bind=ANY_PORT, connect=None, config=QUICK) as sender:
        with stranger(sender.bound, WRONG[said]) as before, within(DROPPED_S):
            assert is_dropped(before, DROPPED_S)
        with pytest.raises(ConnectTimeout):
            sender.wait_peers(0.05)
        with Link(bind=None, connect=sender.bound, config=QUICK) as receiver:
            sender.wait_peers(5)
            with stranger(sender.bound, WRONG[said]) as after, within(DROPPED_S):
                sender.send_dict({"x": 1})
                assert is_dropped(after, DROPPED_S)
            sender.send_dict({"x": 2})
            assert [receiver.recv_dict()["x"] for _ in range(2)] == [1, 2]
            assert sender.next_error() is None


def test_probes_between_dicts_do_not_disturb() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        with stranger(sender.bound) as silent:
            with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
                sender.wait_peers(5)
                receiver.wait_peers(5)
                for i in range(20):
                    for said in (b"", HTTP, GREETING[:10], _NOISE.randbytes(100)):
                        with stranger(sender.bound, said) as connection:
                            is_dropped(connection, 0.01)
                    sender.send_dict({"i": i})
                    assert receiver.recv_dict() == {"i": i}
                    if i == 10:
                        silent.sendall(HTTP * 20)
                assert sender.next_error() is None


def test_two_hundred_half_open_connections_leave_room_for_the_receiver() -> None:
    with Link(bind=ANY_PORT, connect=None, config=QUICK) as sender:
        where = ("127.0.0.1", port_of(sender.bound))
        strangers = [socket.create_connection(where) for _ in range(200)]
        try:
            with Link(bind=None, connect=sender.bound, config=QUICK) as receiver, within(3.0):
                sender.send_dict({"x": 1})
                assert receiver.recv_dict() == {"x": 1}
                assert all(is_dropped(each, DROPPED_S) for each in strangers)
        finally:
            for each in strangers:
                each.close()


def test_receiver_outlasts_a_stranger_on_the_senders_port() -> None:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen()
    port = server.getsockname()[1]
    with Link(bind=None, connect=f"127.0.0.1:{port}", config=FAST) as receiver:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(ConnectTimeout, match="does not speak ZeroMQ"):
                receiver.wait_peers(0.3)
        with Link(bind=port, connect=None, config=FAST) as sender:
            sender.wait_peers(5)
            receiver.wait_peers(5)


def test_second_receiver_is_refused_and_neither_steals_nor_ends_anything() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST, next="stage 1") as sender:
        with Link(bind=None, connect=sender.bound, config=FAST) as first:
            sender.wait_peers(5)
            with Link(bind=None, connect=sender.bound, config=FAST) as second:
                for i in range(200):
                    sender.send_control(b"%d" % i, route=Route.LINK)
                with pytest.raises(ConnectTimeout, match="it has its receiver already"):
                    second.wait_peers(1.0)
                assert [first.recv_control(5).body for _ in range(200)] == [b"%d" % i for i in range(200)]
                assert second.stats()["messages_received"] == 0
            assert sender.stats()["refused"] >= 1 and sender.next_error() is None


def test_second_sender_at_the_address_is_refused_before_it_begins() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        with pytest.raises(ConnectError, match=f"in use.*pid {os.getpid()} .*each stage its own port"):
            Link(bind=sender.bound, connect=None)
