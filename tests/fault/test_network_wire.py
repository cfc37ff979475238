"""A wire that resets, delays, loses, repeats and reorders: the ends say so, name each other, and take up again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from tests.fault.memory import grows_by_at_most
from tests.fault.values import assert_whole, numbered
from tests.fault.wire import Wire, bad_wire, dial, listen, unreliable
from tests.links import ANY_PORT, FAST
from zmqpp.errors import PeerLostError, RecvTimeout, SequenceError, ZmqppError
from zmqpp.transport import Link

MIB = 1 << 20
CONFIG = replace(FAST, lane="tcp", chunk_bytes=16384, heartbeat_s=0.1, peer_timeout_s=2.0)
SIZES = (100, 200_000, 70_000, 10)
SEED = 5
TURNS = 20
WRONG_ORDER = (SequenceError, PeerLostError)


@contextmanager
def over_a_wire() -> Iterator[tuple[Link, Link, Wire]]:
    with (
        Link(bind=ANY_PORT, connect=None, config=CONFIG, next="stage 1") as sender,
        bad_wire(listen("127.0.0.1"), lambda: dial(sender.bound)) as wire,
        Link(bind=None, connect=wire.where, config=CONFIG, previous="stage 0") as receiver,
    ):
        yield sender, receiver, wire


def receive_until_it_breaks(sender: Link, receiver: Link) -> int:
    """How many dicts came, in order and whole, before one of the ends missed the other."""
    number = 0
    while receiver.previous_error() is None:
        try:
            assert_whole(receiver.recv_dict(timeout_s=0.5), number, SIZES[number % len(SIZES)])
            number += 1
        except RecvTimeout:
            # Cut within the handshake, which for one end was over: the other one looks for it by itself.
            if sender.next_error() is not None:
                return number
        except ZmqppError:
            break
    return number


def send_many(sender: Link) -> None:
    """More than any connection here lasts for."""
    with suppress(PeerLostError):
        for i in range(60):
            sender.isend_dict(numbered(i, SIZES[i % len(SIZES)]), timeout_s=10)


def break_once(sender: Link, receiver: Link, by: tuple[type[ZmqppError], ...] = (PeerLostError,)) -> int:
    """Send until the connection breaks, and open both halves anew; how many dicts came."""
    send_many(sender)
    came = receive_until_it_breaks(sender, receiver)
    missed, broke = receiver.previous_error(), sender.next_error()
    assert missed is None or (isinstance(missed, by) and "stage 0" in str(missed))
    assert broke is None or (isinstance(broke, PeerLostError) and "stage 1" in str(broke))
    assert missed or broke
    sender.reopen_send()
    receiver.reopen_receive()
    return came


def test_twenty_resets_at_random_places_and_each_time_both_ends_name_the_other() -> None:
    chance = random.Random(SEED)
    with over_a_wire() as (sender, receiver, wire):
        wire.reset_after = lambda: int(chance.choice([200, 5000, 300_000, 3 * MIB]) * chance.random())
        received = sum(break_once(sender, receiver) for _ in range(TURNS // 4))  # pools are warm then
        with grows_by_at_most(32 * MIB):
            received += sum(break_once(sender, receiver) for _ in range(TURNS - TURNS // 4))
        print(f"{wire.resets} resets on {wire.connections} connections, {received} dicts whole")
        assert wire.resets >= TURNS and received > 0


def test_a_slow_and_uneven_wire_loses_nothing() -> None:
    chance = random.Random(SEED)
    with over_a_wire() as (sender, receiver, wire):
        wire.latency_s = lambda: 0.1 + 0.2 * chance.random()
        for i in range(30):
            sender.isend_dict(numbered(i, SIZES[i % len(SIZES)]))
        for i in range(30):
            assert_whole(receiver.recv_dict(), i, SIZES[i % len(SIZES)])
        assert sender.next_error() is None and receiver.previous_error() is None


@pytest.mark.parametrize("seed", range(3))
def test_a_wire_that_goes_on_losing_messages_never_gives_a_wrong_one(seed: int) -> None:
    """Each time the first fault ends the session; what came before it is right."""
    with over_a_wire() as (sender, receiver, wire):
        sender.wait_peers(10)
        wire.fault = unreliable(seed, one_in=12)
        wire.reset()
        received = sum(break_once(sender, receiver, WRONG_ORDER) for _ in range(TURNS // 2))
        print(f"seed {seed}: {received} dicts whole over {wire.connections} connections")
        wire.fault = None
        sender.wait_peers(10)
        wire.reset()
        break_once(sender, receiver, WRONG_ORDER)
        sender.send_dict(numbered(0, MIB))
        assert_whole(receiver.recv_dict(), 0, MIB)
