"""A segment is finite: who holds it is told, nobody who waits for it is stuck, no tensor changes under its holder."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fault.peer import Peer, until, within
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from tests.links import ANY_PORT, pair
from zmqpp.errors import PoolTimeout
from zmqpp.transport import Link

MIB = 1 << 20
SHARED = Lane("shm", Path())
SMALL = SHARED.config(shm_bytes=8 * MIB)
"""Half of it may be held by tensors before the receiver copies."""
SLOW = SHARED.config(shm_bytes=8 * MIB, shm_hold_bytes=8 * MIB, receive_limit_bytes=1)
"""All of it may be held, and next to nothing may be taken out for later."""


def test_receiver_that_keeps_every_tensor_is_no_deadlock() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        held = []
        copies = []
        for i in range(32):  # four times the segment
            sender.send_dict(numbered(i, MIB), timeout_s=5)
            held.append(receiver.recv_dict())
            copies.append(receiver.stats()["copies_in"])
        assert copies[1] == 0, "the first are views"
        assert copies[-1] >= 24, "the last are copies"
        assert receiver.stats()["held_bytes"] <= 4 * MIB + 32 * MIB
        for i, values in enumerate(held):
            assert_whole(values, i, MIB)
        held.clear()
        del values
        gc.collect()
        sender.send_dict(numbered(99, MIB))
        got = receiver.recv_dict()
        assert receiver.stats()["copies_in"] == copies[-1], "with room again, it is a view again"
        assert_whole(got, 99, MIB)


def test_receiver_that_keeps_thousands_of_tiny_tensors_is_no_deadlock() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        held = []
        for i in range(3000):
            sender.send_dict(numbered(i, 64), timeout_s=5)
            held.append(receiver.recv_dict())
        for i, values in enumerate(held):
            assert_whole(values, i, 64)


def test_posted_receives_that_nobody_waits_for_are_no_deadlock_of_the_others() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        posted = [receiver.irecv_dict() for _ in range(40)]
        sends = [sender.isend_dict(numbered(i, MIB), timeout_s=10) for i in range(40)]
        got = [ticket.wait(5) for ticket in posted]
        for i, values in enumerate(got):
            assert_whole(values, i, MIB)
        for send in sends:
            send.wait_sent(5)


def test_slow_receiver_makes_the_sender_wait_and_tells_what_it_has_not_received() -> None:
    with Link(bind=ANY_PORT, connect=None, config=SLOW, next="stage 1") as sender:
        with Link(bind=None, connect=sender.bound, config=SLOW) as receiver:
            receiver.wait_peers(5)
            with within(5.0):
                sent = fill(sender)
            assert 4 <= sent <= 10, "as many as fit, and those that were taken out for later"
            with within(1.0), pytest.raises(PoolTimeout, match=r"holds \d+ .*that stage 1 has not received"):
                sender.send_dict(numbered(0, MIB), timeout_s=0.3)
            for i in range(sent):
                assert_whole(receiver.recv_dict(timeout_s=2), i, MIB)
            sender.send_dict(numbered(7, MIB), timeout_s=2)
            assert_whole(receiver.recv_dict(timeout_s=2), 7, MIB)
            assert sender.next_error() is None


def test_what_is_taken_out_of_the_segment_for_later_is_bounded() -> None:
    config = SHARED.config(shm_bytes=8 * MIB, receive_limit_bytes=20 * MIB)
    with pair(sender=config, receiver=config) as (sender, receiver):
        sent = fill(sender)
        assert sent <= 30
        for i in range(sent):
            assert_whole(receiver.recv_dict(timeout_s=2), i, MIB)


def test_both_sides_count_a_dict_that_was_cut_off() -> None:
    with pair(sender=SLOW, receiver=SLOW) as (sender, receiver):
        sender.send_dict(numbered(0, 85 * MIB), timeout_s=5)  # taken out for later; the next is not
        with pytest.raises(PoolTimeout):
            sender.send_dict(numbered(1, 85 * MIB), timeout_s=0.3)
        sender.isend_dict(numbered(2, 10))
        assert_whole(receiver.recv_dict(), 0, 85 * MIB)
        assert_whole(receiver.recv_dict(), 2, 10)
        assert (sender.stats()["cancelled"], receiver.stats()["cancelled"]) == (1, 1)


@pytest.mark.parametrize(
    ("held_dicts", "size"),
    [(0, MIB), (6, MIB), (6, 5 * MIB)],
    ids=["nothing taken", "tensors held", "tensors held and a dict in pieces"],
)
def test_waiting_for_room_costs_neither_processor_nor_messages(held_dicts: int, size: int) -> None:
    with pair(sender=SLOW, receiver=SLOW) as (sender, receiver):
        held = hold(sender, receiver, held_dicts)
        fill(sender, size)
        next_one = numbered(1, size)
        messages, used_s = sender.stats()["messages_sent"], time.process_time()
        with pytest.raises(PoolTimeout):
            sender.send_dict(next_one, timeout_s=1.0)
        assert time.process_time() - used_s < 0.3, "of a second that was waited"
        assert sender.stats()["messages_sent"] - messages < 100
        assert len(held) == held_dicts


def hold(sender: Link, receiver: Link, dicts: int) -> list[dict[str, Any]]:
    """Dicts of one MiB that were received."""
    held = []
    for i in range(dicts):
        sender.send_dict(numbered(i, MIB))
        held.append(receiver.recv_dict())
    return held


def fill(sender: Link, size: int = MIB) -> int:
    """Send dicts until there is no room; how many went."""
    sent = 0
    with pytest.raises(PoolTimeout):
        while True:
            sender.send_dict(numbered(sent, size), timeout_s=0.3)
            sent += 1
    return sent


def test_holder_of_the_segment_is_named() -> None:
    with Link(bind=ANY_PORT, connect=None, config=SLOW, next="stage 1") as sender:
        with Link(bind=None, connect=sender.bound, config=SLOW) as receiver:
            held = hold(sender, receiver, 6)
            sent = fill(sender)
            with pytest.raises(
                PoolTimeout, match=r"and [567] \(\d+ bytes\) whose tensors stage 1 still keeps"
            ):
                sender.send_dict(numbered(0, MIB), timeout_s=0.2)
            for i, values in enumerate(held):
                assert_whole(values, i, MIB)
            held.clear()
            del values
            for i in range(sent):
                assert_whole(receiver.recv_dict(timeout_s=2), i, MIB)
            sender.send_dict(numbered(77, MIB), timeout_s=2)
            assert_whole(receiver.recv_dict(timeout_s=2), 77, MIB)


@pytest.mark.parametrize("held_mib", [0, 3, 7])
def test_dict_larger_than_the_segment_arrives_whatever_is_held(held_mib: int) -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        held = []
        for i in range(held_mib):
            sender.send_dict(numbered(i, MIB))
            held.append(receiver.recv_dict())
        large = sender.isend_dict(numbered(50, 85 * MIB + 3))
        after = sender.isend_dict(numbered(51, 10))
        with within(5.0):
            assert_whole(receiver.recv_dict(), 50, 85 * MIB + 3)
            assert_whole(receiver.recv_dict(), 51, 10)
        large.wait_sent(1)
        after.wait_sent(1)
        for i, values in enumerate(held):
            assert_whole(values, i, MIB)


def test_posted_receive_of_a_larger_dict_progresses_while_python_computes() -> None:
    """Nobody waits for it: the link's own thread takes the pieces out."""
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        posted = receiver.irecv_dict()
        sent = sender.isend_dict(numbered(0, 85 * MIB), timeout_s=5)
        with within(5.0):
            until(posted.is_completed)
            sent.wait_sent(1)
        assert_whole(posted.wait(0), 0, 85 * MIB)


def test_many_tensors_of_one_dict_free_its_room_when_the_last_dies() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        sender.send_dict({str(i): torch.full((MIB // 16,), i, dtype=torch.uint8) for i in range(16)})
        got = receiver.recv_dict()
        last = got["7"][100:200]
        del got
        for i in range(40):
            sender.send_dict(numbered(i, MIB), timeout_s=5)
            assert_whole(receiver.recv_dict(), i, MIB)
            assert bool((last == 7).all())
        assert receiver.stats()["held_bytes"] > 0
        del last
        assert receiver.stats()["held_bytes"] == 0


def test_received_tensors_may_be_written_to() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        sender.send_dict(numbered(0, MIB))
        sender.send_dict(numbered(1, MIB))
        first, second = receiver.recv_dict(), receiver.recv_dict()
        first["x"].fill_(255)
        assert_whole(second, 1, MIB)
        sender.send_dict(numbered(2, MIB))
        assert_whole(receiver.recv_dict(), 2, MIB)
        assert bool((first["x"] == 255).all())


def test_forked_child_does_not_give_its_parents_tensors_back() -> None:
    with pair(sender=SMALL, receiver=SMALL) as (sender, receiver):
        sender.send_dict(numbered(0, MIB))
        held = receiver.recv_dict()
        child = os.fork()
        if child == 0:
            held.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for i in range(1, 40):
            sender.send_dict(numbered(i, MIB), timeout_s=5)
            receiver.recv_dict()
        assert_whole(held, 0, MIB)


def test_tensors_outlive_both_links_and_the_sender() -> None:
    with Peer() as peer:
        where = peer.open(bind=ANY_PORT, config=SMALL)
        with Link(bind=None, connect=where, config=SMALL) as receiver:
            peer.send(range(3), MIB)
            held = [receiver.recv_dict() for _ in range(3)]
            peer.do("close")
        peer.kill()
        for i, values in enumerate(held):
            assert_whole(values, i, MIB)
            values["x"].zero_()
