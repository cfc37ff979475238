"""The receiver is killed with -9: everything pending on the sender fails within a bound, and it can begin anew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.fault.peer import Peer, until, within
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from zmqpp.errors import PeerLostError, PoolTimeout
from zmqpp.tickets import SendTicket
from zmqpp.transport import Link, Route

MIB = 1 << 20
SEEN_S = 3.0
"""A kill is seen by then: the kernel closes the connection, nobody has to wait for a silence."""
CLOSED_S = 1.0
LOST = "stage 1 .*closed its connection or died"


@contextmanager
def sending_to(peer: Peer, lane: Lane, **changes) -> Iterator[Link]:
    """A link whose receiver, the peer, has heard its hello; both with these settings."""
    with Link(bind=lane.address(), connect=None, config=lane.config(**changes), next="stage 1") as link:
        peer.open(connect=link.bound, config=lane.config(**changes))
        peer.do("wait_peers")
        link.wait_peers(10)
        yield link


def assert_lost(link: Link, tickets: list[SendTicket]) -> None:
    """Every pending operation and every later one says so; closing does not wait for anybody."""
    with within(SEEN_S):
        for ticket in tickets:
            with pytest.raises(PeerLostError, match=LOST):
                ticket.wait_sent(10)
        until(lambda: link.next_error() is not None)
    assert all(ticket.is_completed() and not ticket.is_sent() for ticket in tickets)
    assert isinstance(link.next_error(), PeerLostError)
    with pytest.raises(PeerLostError, match=LOST):
        link.send_dict({"x": 1}, timeout_s=1)
    with pytest.raises(PeerLostError, match=LOST):
        link.send_control(b"", route=Route.LINK, timeout_s=1)
    with within(CLOSED_S):
        link.close()


def assert_usable(where: str | None, lane: Lane) -> None:
    """A new pair of links can be opened at the address at once."""
    with (
        within(SEEN_S),
        Link(bind=where, connect=None, config=lane.config()) as sender,
        Link(bind=None, connect=where, config=lane.config()) as receiver,
    ):
        sender.send_dict(numbered(1, MIB))
        assert_whole(receiver.recv_dict(), 1, MIB)


def test_killed_before_it_connects_is_never_missed(lane: Lane) -> None:
    """Its sender stands still meanwhile, so that the kernel alone has seen it."""
    with Peer() as sender, Peer() as peer:
        where = sender.open(bind=lane.address(), config=lane.config())
        sender.order("send", range(3), 2 * MIB)
        sender.stop()
        peer.open(connect=where, config=lane.config())
        time.sleep(0.1)  # it connects, and waits for an answer
        peer.kill()
        sender.go_on()
        with within(SEEN_S), Link(bind=None, connect=where, config=lane.config()) as link:
            for i in range(3):
                assert_whole(link.recv_dict(timeout_s=10), i, 2 * MIB)
            sender.answer()


def test_killed_while_idle(lane: Lane) -> None:
    with Peer() as peer, sending_to(peer, lane) as link:
        peer.kill()
        assert_lost(link, [])
        assert_usable(link.bound, lane)


def test_killed_while_its_inbox_is_full(lane: Lane) -> None:
    with Peer() as peer, sending_to(peer, lane, receive_limit_bytes=1, shm_bytes=8 * MIB) as link:
        link.send_dict(numbered(0, 100))
        waiting = fill(link, numbered(1, 120 * MIB), 2)
        peer.kill()
        assert_lost(link, waiting)
        assert_usable(link.bound, lane)


def test_killed_in_the_middle_of_a_dict(lane: Lane) -> None:
    with Peer() as peer, sending_to(peer, lane, shm_bytes=8 * MIB) as link:
        link.send_dict(numbered(0, MIB))
        peer.receive([0], MIB)
        peer.stop()  # so it takes a part of the dict, as much as fits between the two
        before = link.stats()["bytes_sent"]
        ticket = link.isend_dict(numbered(1, 100 * MIB))
        until(lambda: link.stats()["bytes_sent"] > before)
        peer.kill()
        assert_lost(link, [ticket])
        assert_usable(link.bound, lane)


def test_killed_while_it_holds_tensors(lane: Lane) -> None:
    with Peer() as peer, sending_to(peer, lane) as link:
        tickets = [link.isend_dict(numbered(i, 5 * MIB)) for i in range(4)]
        peer.receive(range(4), 5 * MIB)
        for ticket in tickets:
            ticket.wait_sent(5)
        peer.kill()
        assert_lost(link, [])
        assert_usable(link.bound, lane)


def test_killed_while_the_sender_waits_for_room(lane: Lane) -> None:
    """The error reaches a caller that has been waiting since before the kill."""
    narrow = {"receive_limit_bytes": 1, "queue_items": 2, "shm_bytes": 8 * MIB}
    with Peer() as peer, sending_to(peer, lane, **narrow) as link:
        link.send_dict(numbered(0, 100))
        large = numbered(1, 120 * MIB)
        waiting = fill(link, large, 2)
        with pytest.raises(PoolTimeout, match="holds 2 messages, .*stage 1 is slower"):
            link.isend_dict(large, timeout_s=0.2)
        peer.order("call", die_in_a_moment)
        with within(SEEN_S), pytest.raises(PeerLostError, match=LOST):
            link.isend_dict(large, timeout_s=20)
        assert_lost(link, waiting)
        assert_usable(link.bound, lane)


def fill(link: Link, large: dict[str, Any], wanted: int) -> list[SendTicket]:
    """Send it until so many of it wait: a receiver may take one ahead, and some lies between the two."""
    waiting: list[SendTicket] = []
    while len(waiting) < wanted:
        waiting.append(link.isend_dict(large))
        time.sleep(0.2)
        waiting = [ticket for ticket in waiting if not ticket.is_sent()]
    return waiting


def die_in_a_moment(_: Link) -> None:
    """Runs in the peer."""
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
