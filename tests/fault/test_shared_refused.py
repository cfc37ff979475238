"""A segment that cannot be made or opened: the link takes the socket and says why, or fails if told to use shm."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fault import places
from tests.fault.peer import Peer, within
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from tests.links import ANY_PORT
from zmqpp.errors import PeerLostError, SharedMemoryError
from zmqpp.transport import Link

MIB = 1 << 20
AUTO = Lane("shm", Path()).config(lane="auto")
SHARED = Lane("shm", Path()).config()
SOON_S = 3.0
"""A link that cannot have the segment must not be slow to begin."""


def need(holds: bool, what: str) -> None:
    if not holds:
        pytest.skip(f"this machine does not let tests {what}")


PLACES: dict[str, tuple[Callable[[], None], str]] = {
    "/dev/shm is full": (partial(places.with_own_shared_memory, "64k"), "no room"),
    "/dev/shm is read-only": (places.without_shared_memory, "Read-only"),
}
"""Where a sender cannot make a segment, and what the reason says."""
ELSEWHERE: dict[str, tuple[Callable[[], None], str]] = {
    "another user": (places.as_another_user, "Permission denied"),
    "another container": (partial(places.with_own_shared_memory, "64m"), "No such file"),
}
"""Where a receiver cannot open the sender's segment, and what the reason says."""


@pytest.fixture
def peer_at(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], None]], Peer]]:
    """Makes a peer that runs in such a place."""
    peers: list[Peer] = []

    def make(before: Callable[[], None]) -> Peer:
        if before is places.as_another_user:
            need(places.can_be_another_user(), "run as another user")
        else:
            need(places.can_mount(), "mount a /dev/shm of their own")
        peers.append(Peer(before))
        return peers[-1]

    yield make
    for peer in peers:
        peer.__exit__()


def assert_socket(stats: dict[str, Any], reason: str) -> None:
    assert stats["lane"] == "tcp"
    assert reason in stats["lane_reason"], stats["lane_reason"]


@pytest.mark.parametrize("place", PLACES)
def test_sender_without_room_for_a_segment_takes_the_socket(place: str, peer_at: Any) -> None:
    before, reason = PLACES[place]
    peer = peer_at(before)
    with within(SOON_S):
        where = peer.open(bind=ANY_PORT, config=AUTO)
        with Link(bind=None, connect=where, config=AUTO) as link:
            peer.send(range(3), 3 * MIB)
            for i in range(3):
                assert_whole(link.recv_dict(), i, 3 * MIB)
            assert_socket(peer.stats(), reason)
            assert_socket(link.stats(), reason)


@pytest.mark.parametrize("place", PLACES)
def test_sender_told_to_share_fails_without_room_for_a_segment(place: str, peer_at: Any) -> None:
    before, reason = PLACES[place]
    peer = peer_at(before)
    with within(SOON_S), pytest.raises(SharedMemoryError, match=reason):
        peer.open(bind=ANY_PORT, config=SHARED)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_receiver_that_cannot_open_the_segment_takes_the_socket(place: str, peer_at: Any) -> None:
    before, reason = ELSEWHERE[place]
    peer = peer_at(before)
    with within(SOON_S), Link(bind=ANY_PORT, connect=None, config=AUTO, next="stage 1") as link:
        peer.open(connect=link.bound, config=AUTO)
        for i in range(3):
            link.send_dict(numbered(i, 3 * MIB))
        peer.receive(range(3), 3 * MIB)
        assert_socket(peer.stats(), reason)
        assert_socket(link.stats(), "receiver did not open the segment")


@pytest.mark.parametrize("place", ELSEWHERE)
def test_receiver_told_to_share_fails_if_it_cannot_open_the_segment(place: str, peer_at: Any) -> None:
    before, reason = ELSEWHERE[place]
    peer = peer_at(before)
    with within(SOON_S), Link(bind=ANY_PORT, connect=None, config=AUTO, next="stage 1") as link:
        peer.open(connect=link.bound, config=SHARED)
        with pytest.raises(SharedMemoryError, match=f"lane shm was asked for: .*{reason}"):
            peer.do("wait_peers")
        with pytest.raises(PeerLostError, match="stage 1"):
            link.send_dict(numbered(0, 100 * MIB), timeout_s=2)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_sender_told_to_share_fails_if_the_receiver_cannot_open_the_segment(place: str, peer_at: Any) -> None:
    before, _ = ELSEWHERE[place]
    peer = peer_at(before)
    quick = replace(SHARED, handshake_s=0.5)
    with within(SOON_S), Link(bind=ANY_PORT, connect=None, config=quick, next="stage 1") as link:
        peer.open(connect=link.bound, config=AUTO)
        with pytest.raises(SharedMemoryError, match="lane shm was asked for: the receiver did not open"):
            link.wait_peers(5)
        with pytest.raises(SharedMemoryError):
            link.send_dict(numbered(0, MIB))


@pytest.mark.parametrize("told", ["sender", "receiver"])
def test_one_side_told_to_use_the_socket_is_enough(told: str) -> None:
    socket_only = Lane("shm", Path()).config(lane="tcp")
    sides = (socket_only, AUTO) if told == "sender" else (AUTO, socket_only)
    with within(SOON_S), Link(bind=ANY_PORT, connect=None, config=sides[0]) as sender:
        with Link(bind=None, connect=sender.bound, config=sides[1]) as receiver:
            sender.send_dict(numbered(0, 3 * MIB))
            assert_whole(receiver.recv_dict(), 0, 3 * MIB)
            assert sender.stats()["lane"] == receiver.stats()["lane"] == "tcp"
            assert [*Path("/dev/shm").glob(f"zmqpp-{os.getpid()}-*")] == []


@pytest.mark.parametrize("size", ["1m", "3m", "20m"])
def test_tiny_shared_memory_carries_dicts_larger_than_itself(size: str, peer_at: Any) -> None:
    """Pages are reserved before they are written: a full /dev/shm is no SIGBUS."""
    peer = peer_at(partial(places.with_own_shared_memory, size))
    assert peer.do("call_free", carry_larger_dicts) in ("shm", "tcp")


def carry_larger_dicts() -> str:
    """Runs in the peer: both sides do, as they must share its /dev/shm."""
    config = AUTO
    with (
        Link(bind=ANY_PORT, connect=None, config=config) as sender,
        Link(bind=None, connect=sender.bound, config=config) as receiver,
    ):
        held = []
        for i in range(8):
            ticket = sender.isend_dict(numbered(i, 8 * MIB), timeout_s=3)
            held.append(receiver.recv_dict(timeout_s=3))
            ticket.wait_sent()
        for i, values in enumerate(held):
            assert_whole(values, i, 8 * MIB)
        return receiver.stats()["lane"]


def test_shared_memory_that_fills_up_later_slows_the_link_and_no_more(peer_at: Any) -> None:
    peer = peer_at(partial(places.with_own_shared_memory, "16m"))
    assert peer.do("call_free", carry_while_others_fill_it) == "shm"


def carry_while_others_fill_it() -> str:
    """Runs in the peer."""
    with (
        Link(bind=ANY_PORT, connect=None, config=AUTO) as sender,
        Link(bind=None, connect=sender.bound, config=AUTO) as receiver,
    ):
        for i in range(6):
            if i == 2:
                _fill(Path("/dev/shm/others"))
            ticket = sender.isend_dict(numbered(i, 8 * MIB))
            assert_whole(receiver.recv_dict(), i, 8 * MIB)
            ticket.wait_sent()
        return receiver.stats()["lane"]


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
