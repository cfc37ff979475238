"""A peer gone wrong writes what it likes into the segment: a named error or none, never the end of a process."""

from __future__ import annotations

import mmap
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.peer import Peer, until, within
from tests.fault.segment import CONTROLS, ENTRIES, HEAD, PAYLOAD, RELEASES, entry, put_entry, segment_of
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from tests.links import ANY_PORT
from zmqpp.errors import (
    ChecksumError,
    MalformedError,
    PeerLostError,
    ProtocolError,
    SequenceError,
    ZmqppError,
)
from zmqpp.transport import Link, Route

MIB = 1 << 20
SHARED = Lane("shm", Path())
CONFIG = SHARED.config(shm_bytes=8 * MIB, timeout_s=1.0, linger_s=0.2, peer_timeout_s=1.0)
SEEN_S = 4.0


@contextmanager
def linked(**changes) -> Iterator[tuple[Peer, Link, mmap.mmap]]:
    """(the sender, in another process; the receiver; their segment)"""
    config = SHARED.config(shm_bytes=8 * MIB, timeout_s=2.0, linger_s=0.2, **changes)
    with Peer() as peer:
        where = peer.open(bind=ANY_PORT, config=config)
        with Link(bind=None, connect=where, config=config, previous="stage 0") as receiver:
            peer.send([0], 100)
            assert_whole(receiver.recv_dict(), 0, 100)
            with segment_of(peer.pid) as memory:
                yield peer, receiver, memory


WRONG: dict[str, tuple[str, int, type[ProtocolError]]] = {
    "offset beyond the area": ("offset", 8 * MIB, MalformedError),
    "offset of 2^60": ("offset", 1 << 60, MalformedError),
    "offset that overflows": ("offset", 2**64 - 64, MalformedError),
    "crooked offset": ("offset", 1, MalformedError),
    "total of 2^60": ("total", 1 << 60, MalformedError),
    "another total": ("total", 64, MalformedError),
    "body of 4 GiB": ("body size", 2**32 - 1, MalformedError),
    "body of 2^47": ("body size, high", 2**15, MalformedError),
    "manifest of 4 GiB": ("manifest size", 2**32 - 1, MalformedError),
    "manifest of nothing": ("manifest size", 0, MalformedError),
    "no such slot": ("slot", 1024, MalformedError),
    "unknown kind": ("kind", 9, MalformedError),
    "kind 0": ("kind", 0, MalformedError),
    "a first piece that is all": ("kind", 2, MalformedError),
    "a piece of nothing": ("kind", 3, MalformedError),
    "a cancel of nothing": ("kind", 4, SequenceError),
    "unknown flags": ("flags", 0x80, MalformedError),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_entry_is_refused(case: str) -> None:
    field, value, error = WRONG[case]
    with linked() as (peer, receiver, memory):
        peer.send([1], 5000)  # entry 2, which nobody looks at yet
        until(lambda: entry(memory, 2, "number") == 2)
        put_entry(memory, 2, field, value)
        with within(SEEN_S), pytest.raises(error):
            receiver.recv_dict(timeout_s=2)
        with within(SEEN_S), pytest.raises(error):
            receiver.recv_control(2)
        with pytest.raises(ZmqppError):  # and the sender hears that its receiver gave up
            while True:
                peer.send([2], 100)


@pytest.mark.parametrize(
    ("at", "content"), {"number": (0, 9), "size": (32, 70_000), "route": (44, 7), "flags": (45, 8)}.values()
)
def test_wrong_control_message_is_refused(at: int, content: int) -> None:
    with linked() as (peer, receiver, memory):
        peer.do("send_control", b"stage")
        until(lambda: memory[HEAD["control written"]] == 128)
        struct.pack_into("<I" if at == 32 else "<B", memory, CONTROLS + at, content)
        with within(SEEN_S), pytest.raises(MalformedError, match="stage 0"):
            receiver.recv_control(2)
        with within(SEEN_S), pytest.raises(MalformedError):
            receiver.recv_dict(timeout_s=2)


def test_reader_that_gives_room_it_has_not_fails_the_sender() -> None:
    with linked() as (peer, _, memory):
        struct.pack_into("<Q", memory, HEAD["control read"], 1 << 20)
        with pytest.raises(ZmqppError):
            while True:
                peer.do("send_control", b"stage")


def test_error_found_in_the_segment_names_the_sender() -> None:
    with linked() as (peer, receiver, memory):
        peer.send([1], 5000)
        until(lambda: entry(memory, 2, "number") == 2)
        put_entry(memory, 2, "kind", 9)
        with pytest.raises(MalformedError, match="stage 0"):
            receiver.recv_dict(timeout_s=2)


def test_corrupted_payload_in_the_segment_is_found_by_its_checksum() -> None:
    with linked(checksum=True) as (peer, receiver, memory):
        peer.send([1], 5000)
        until(lambda: entry(memory, 2, "number") == 2)
        memory[PAYLOAD + entry(memory, 2, "offset") + 2000] ^= 1
        with within(SEEN_S), pytest.raises(ChecksumError, match="checksum of 5120 bytes"):
            receiver.recv_dict(timeout_s=2)


def test_corrupted_manifest_in_the_segment_is_refused_or_means_other_values() -> None:
    random_at = random.Random(3)
    for _ in range(4):
        with linked() as (peer, receiver, memory):
            number = 1
            while receiver.previous_error() is None and number < 60:
                peer.send([number], 200)
                number += 1
                until(lambda n=number: entry(memory, n, "number") == n)
                at = PAYLOAD + entry(memory, number, "offset")
                memory[at + random_at.randrange(entry(memory, number, "manifest size"))] ^= 0xFF
                try:
                    assert isinstance(receiver.recv_dict(timeout_s=2), dict)
                except ProtocolError:
                    pass


def test_release_of_a_slot_that_was_not_given_fails_the_sender() -> None:
    with linked() as (peer, receiver, memory):
        released = next(n for n in range(1, 9) if _release(memory, n) >> 16 != n)
        struct.pack_into("<Q", memory, RELEASES + (released - 1) * 8, released << 16 | 999)
        with within(SEEN_S), pytest.raises((MalformedError, PeerLostError)):
            while True:
                peer.send([1], 100)
        with within(SEEN_S), pytest.raises(ZmqppError):
            while True:
                receiver.recv_dict(timeout_s=2)


def _release(memory: mmap.mmap, number: int) -> int:
    return struct.unpack_from("<Q", memory, RELEASES + (number - 1) * 8)[0]


def _anywhere(start: int, end: int) -> Callable[[mmap.mmap, random.Random], None]:
    def scribble(memory: mmap.mmap, noise: random.Random) -> None:
        at = noise.randrange(start, min(end, len(memory) - 64))
        memory[at : at + 8] = noise.randbytes(8)

    return scribble


def _in_head(*fields: str) -> Callable[[mmap.mmap, random.Random], None]:
    def scribble(memory: mmap.mmap, noise: random.Random) -> None:
        at = HEAD[noise.choice(fields)]
        memory[at : at + 8] = noise.choice([bytes(8), b"\xff" * 8, noise.randbytes(8)])

    return scribble


SCRIBBLES = {
    "words that are read once": _in_head(
        "magic", "version", "slots", "session", "payload offset", "payload bytes"
    ),
    "state": _in_head("state"),
    "bells": _in_head("bell", "attention", "room", "room wanted"),
    "taken": _in_head("taken"),
    "entries": _anywhere(ENTRIES, ENTRIES + 64 * 64),
    "releases": _anywhere(RELEASES, RELEASES + 64 * 8),
    "payload": _anywhere(PAYLOAD, PAYLOAD + 64 * 1024),
    "control ring": _anywhere(CONTROLS, CONTROLS + 64 * 256),
    "control positions": _in_head("control written", "control read"),
    "everything": _anywhere(0, PAYLOAD + 64 * 1024),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("where", SCRIBBLES)
def test_scribbles_end_in_errors_or_nothing_and_both_processes_live(where: str, seed: int) -> None:
    noise = random.Random(seed)
    with Peer() as sender, Peer() as receiver:
        bound = sender.open(bind=ANY_PORT, config=CONFIG)
        receiver.open(connect=bound, config=CONFIG)
        sender.send([0], 100)
        receiver.receive([0], 100)
        with segment_of(sender.pid) as memory:
            sender.order("call", keep_sending, 0.4)
            receiver.order("call", keep_receiving, 0.4)
            until_s = time.monotonic() + 0.3
            while time.monotonic() < until_s:
                for _ in range(20):
                    SCRIBBLES[where](memory, noise)
                time.sleep(0.001)
            with within(SEEN_S):
                for peer in (sender, receiver):
                    peer.answer()  # EOFError if it died
                    assert isinstance(peer.stats(), dict)
                    peer.do("close")
        bound = sender.open(bind=bound, config=CONFIG)
        receiver.open(connect=bound, config=CONFIG)
        sender.send([5], MIB)
        receiver.receive([5], MIB)


def keep_sending(link: Link, seconds: float) -> str:
    """Runs in the peer; what it ended with."""
    deadline = time.monotonic() + seconds
    try:
        for i in range(1 << 30):
            link.send_control(b"c" * (i % 300), route=Route.LINK, timeout_s=0.3)
            link.send_dict(numbered(i, 100 if i % 3 else 200_000), timeout_s=0.3)
            if time.monotonic() > deadline:
                break
    except ZmqppError as error:
        return repr(error)
    return ""


def keep_receiving(link: Link, seconds: float) -> str:
    """Runs in the peer; what it ended with. Wrong bytes are wrong bytes: only that it lives is asked for."""
    deadline = time.monotonic() + seconds
    ended = ""
    held = []
    while time.monotonic() < deadline:
        try:
            held = [*held[-5:], link.recv_dict(timeout_s=0.2)]
            link.recv_control(0)
        except ZmqppError as error:
            ended = repr(error)
            if link.previous_error() is not None:
                break
    return ended
