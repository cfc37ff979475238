"""A process is killed with -9 while it copies: the other one hears of it, computes on, and its memory comes back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fault.peer import Peer, within
from tests.gpu.device import DEVICE, assert_works, require
from tests.gpu.numbered import Checking, Sending, check_all, send_all
from tests.lanes import Lane
from zmqpp.bench.device import settle
from zmqpp.bench.targets import LARGE
from zmqpp.errors import PeerLostError
from zmqpp.transport import Link

require()
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("memory_and_context_survive")]

SEEN_S = 20.0
"""More than enough: the kernel closes the connection of a killed process, nobody waits for a silence."""
FOR_EVER = range(1 << 40)
AFTER = [(1, 0.0), (3, 0.004), (6, 0.011)]
"""Dicts, and seconds then, after which it is killed: other places in a copy each time."""


@contextmanager
def receiving_from(peer: Peer, lane: Lane) -> Iterator[Link]:
    where = peer.open(bind=lane.address(), config=lane.config(), device=DEVICE)
    with Link(bind=None, connect=where, config=lane.config(), device=DEVICE) as link:
        link.wait_peers(20)
        yield link


@contextmanager
def sending_to(peer: Peer, lane: Lane) -> Iterator[Link]:
    with Link(bind=lane.address(), connect=None, config=lane.config(), device=DEVICE) as link:
        peer.open(connect=link.bound, config=lane.config(), device=DEVICE)
        link.wait_peers(20)
        yield link


@pytest.mark.parametrize(("dicts", "more_s"), AFTER)
def test_sender_killed_while_it_copies(lane: Lane, dicts: int, more_s: float) -> None:
    checking = Checking(DEVICE)
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.order("call", send_all, DEVICE, FOR_EVER, LARGE)
        for number in range(dicts):
            checking.check(link.recv_dict(timeout_s=60), number, LARGE)
        time.sleep(more_s)
        peer.kill()
        with within(SEEN_S), pytest.raises(PeerLostError):
            for number in itertools.count(dicts):  # what had come before is handed out, whole
                checking.check(link.recv_dict(timeout_s=60), number, LARGE)
        checking.read()
        assert_works()


def test_tensors_of_a_killed_sender_stay_whole(lane: Lane) -> None:
    checking = Checking(DEVICE)
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.order("call", send_all, DEVICE, FOR_EVER, LARGE)
        held = [link.recv_dict(timeout_s=60) for _ in range(3)]
        peer.kill()
        with within(SEEN_S), pytest.raises(PeerLostError):
            while True:
                link.recv_dict(timeout_s=60)
    for number, got in enumerate(held):
        checking.check(got, number, LARGE)
    checking.read()


@pytest.mark.parametrize(("dicts", "more_s"), AFTER)
def test_receiver_killed_while_it_copies(lane: Lane, dicts: int, more_s: float) -> None:
    with Peer() as peer, sending_to(peer, lane) as link:
        peer.order("call", check_all, DEVICE, FOR_EVER, LARGE)
        sending = Sending(link, DEVICE)
        for number in range(dicts):
            sending.send(number, LARGE)
        time.sleep(more_s)
        peer.kill()
        with within(SEEN_S), pytest.raises(PeerLostError):
            for number in itertools.count(dicts):
                sending.send(number, LARGE)
        with within(SEEN_S):
            settle(DEVICE)  # no copy of ours waits for the one that is dead
        assert_works()


def test_killed_while_nothing_is_taken_from_it(lane: Lane) -> None:
    """Its ring or segment is full, and its copies wait for room."""
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.order("call", send_all, DEVICE, FOR_EVER, LARGE)
        link.recv_dict(timeout_s=60)
        time.sleep(0.5)
        peer.kill()
        with within(SEEN_S), pytest.raises(PeerLostError):
            while True:
                link.recv_dict(timeout_s=60)


def test_next_pair_can_be_opened_after_a_kill(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.order("call", send_all, DEVICE, FOR_EVER, LARGE)
        link.recv_dict(timeout_s=60)
        peer.kill()
        with within(SEEN_S), pytest.raises(PeerLostError):
            while True:
                link.recv_dict(timeout_s=60)
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.order("call", send_all, DEVICE, range(20))
        assert check_all(link, DEVICE, range(20)) == 20
        peer.answer()
        peer.do("close")
