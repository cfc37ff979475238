"""Sizes that nobody can mean: they are refused before anything is allocated."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.fault.memory import grows_by_at_most
from tests.fault.peer import within
from tests.fault.raw import CANCEL, CHUNK, CONTROL, DICT, raw_sender
from tests.fault.zmtp import GREETING, is_dropped, long_frame_header, shake_hands, stranger
from tests.links import ANY_PORT, FAST
from zmqpp import _engine
from zmqpp.errors import MalformedError, PeerLostError, RecvTimeout
from zmqpp.transport import Link

MIB, GIB = 1 << 20, 1 << 30
HUGE = 1 << 60
SEEN_S = 3.0
LITTLE = 4 * MIB
"""What may be used meanwhile: threads' stacks, ZeroMQ's buffers, an exception's text."""
EMPTY_MANIFEST = struct.pack("<I", 4) + b"\x92\x90\x91\x01"


def dict_of(buffer_sizes: bytes) -> bytes:
    """The body of a dict whose manifest begins with this msgpack array."""
    manifest = b"\x92" + buffer_sizes + b"\x91\x01"
    return struct.pack("<I", len(manifest)) + manifest


REFUSED = {
    "dict of 2^60": lambda sender: sender.message(DICT, EMPTY_MANIFEST, total=HUGE),
    "dict of 2^64 - 1": lambda sender: sender.message(DICT, EMPTY_MANIFEST, total=2**64 - 1),
    "dict a byte above the limit": lambda sender: sender.message(
        DICT, EMPTY_MANIFEST, total=FAST.max_dict_bytes + 1
    ),
    "inline dict of 2^60": lambda sender: sender.message(DICT, EMPTY_MANIFEST, total=HUGE, flags=1),
    "dict with a body of 2^32 - 1": lambda sender: sender.message(DICT, EMPTY_MANIFEST, body_size=2**32 - 1),
    "manifest of 2^32 - 1": lambda sender: sender.message(DICT, struct.pack("<I", 2**32 - 1) + bytes(60)),
    "chunk at 2^60": lambda sender: sender.message(CHUNK, bytes(64), offset=HUGE, total=HUGE + 64),
    "chunk whose end overflows": lambda sender: sender.message(CHUNK, bytes(64), offset=2**64 - 32, total=64),
    "control message of 2^32 - 1": lambda sender: sender.message(CONTROL, b"x", body_size=2**32 - 1),
    "control message with a total of 2^60": lambda sender: sender.message(CONTROL, b"x", total=HUGE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_announcement_in_a_head_is_refused_before_allocating(case: str) -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        link.wait_peers(5)
        with grows_by_at_most(LITTLE), within(SEEN_S), pytest.raises(MalformedError):
            REFUSED[case](sender)
            link.recv_dict(timeout_s=5)


BUFFERS = {
    "a buffer of 2^60": b"\x91\xcf" + struct.pack(">Q", HUGE),
    "a buffer of 2^64 - 1": b"\x91\xcf" + struct.pack(">Q", 2**64 - 1),
    "a buffer of -2^60": b"\x91\xd3" + struct.pack(">q", -HUGE),
    "sizes that overflow to nothing": b"\x92" + (b"\xcf" + struct.pack(">Q", 1 << 63)) * 2,
    "2^32 - 1 buffers": b"\xdd" + struct.pack(">I", 2**32 - 1),
}


@pytest.mark.parametrize("case", BUFFERS)
def test_announcement_in_a_manifest_is_refused_before_allocating(case: str) -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_of(BUFFERS[case]))
        with grows_by_at_most(LITTLE), within(SEEN_S), pytest.raises(MalformedError):
            link.recv_dict(timeout_s=5)


def test_largest_dict_that_is_allowed_takes_memory_only_as_its_bytes_come() -> None:
    with raw_sender() as (sender, link), grows_by_at_most(LITTLE):
        sender.hello()
        sender.message(DICT, EMPTY_MANIFEST, total=FAST.max_dict_bytes)
        sender.message(CHUNK, bytes(MIB), total=FAST.max_dict_bytes)
        with pytest.raises(RecvTimeout):
            link.recv_dict(timeout_s=0.1)
        sender.message(CANCEL)
        sender.message(DICT, EMPTY_MANIFEST)
        assert link.recv_dict() == {}


@contextmanager
def by_hand(*parts: bytes) -> Iterator[Link]:
    """A receiver whose sender greets by hand and then says `parts`."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with Link(
            bind=None, connect=f"127.0.0.1:{server.getsockname()[1]}", config=FAST, previous="stage 0"
        ) as link:
            connection, _ = server.accept()
            with connection:
                shake_hands(connection, b"PUSH")
                connection.sendall(b"".join(parts))
                yield link


HELLO_BODY = _engine.write_hello(-1, 0, "by hand")
HELLO_FRAME = _engine.write_head(1, body_size=len(HELLO_BODY)) + HELLO_BODY


def test_frame_of_2_to_the_60_loses_the_link_before_allocating() -> None:
    hello = bytes([0, len(HELLO_FRAME)]) + HELLO_FRAME
    with grows_by_at_most(LITTLE), by_hand(hello, long_frame_header(HUGE), bytes(4096)) as link:
        with within(SEEN_S), pytest.raises(PeerLostError, match="stage 0 .*was lost"):
            link.recv_dict(timeout_s=5)


def test_frame_of_2_to_the_60_before_any_hello_loses_the_link_before_allocating() -> None:
    with grows_by_at_most(LITTLE), by_hand(long_frame_header(HUGE), bytes(4096)) as link:
        with within(SEEN_S), pytest.raises(PeerLostError, match="stage 0 .*was lost"):
            link.recv_dict(timeout_s=5)


@pytest.mark.parametrize("greeted", [b"", GREETING], ids=["before the greeting", "instead of READY"])
def test_stranger_that_announces_2_to_the_60_is_dropped(greeted: bytes) -> None:
    with Link(bind=ANY_PORT, connect=None, config=replace(FAST, handshake_s=0.3)) as sender:
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            sender.wait_peers(5)
            with (
                grows_by_at_most(LITTLE),
                stranger(sender.bound, greeted + long_frame_header(HUGE)) as connection,
            ):
                assert is_dropped(connection, SEEN_S)
            sender.send_dict({"x": 1})
            assert receiver.recv_dict() == {"x": 1}


@pytest.mark.parametrize(
    "size",
    [HUGE, 256 * MIB],
    ids=["2^60", "what it then sends"],
)
def test_receiver_that_talks_cannot_fill_the_senders_memory(size: int) -> None:
    """It should say nothing at all, docs/wire_format.md: it is not a peer of ours."""
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender, grows_by_at_most(16 * MIB):
        with stranger(sender.bound) as connection:
            shake_hands(connection, b"PULL")
            sender.wait_peers(5)
            try:
                connection.sendall(long_frame_header(size))
                for _ in range(size // MIB if size < HUGE else 1):
                    connection.sendall(bytes(MIB))
            except OSError:
                pass  # it hung up: that is as well
            connection.close()
            with within(SEEN_S), pytest.raises(PeerLostError):
                while True:
                    sender.send_dict({"x": 1}, timeout_s=0.5)
