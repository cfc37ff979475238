"""A peer that stands still (SIGSTOP): its connection lives on, so only clocks can tell."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fault.peer import Peer, until, within
from tests.fault.test_killed_sender import has_arrived
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from zmqpp.errors import PeerLostError, PoolTimeout, RecvTimeout, SendTimeout
from zmqpp.transport import Link, Route

MIB = 1 << 20
PEER_TIMEOUT_S = 0.6
GIVEN_UP_S = PEER_TIMEOUT_S + 1.5
"""The timeout, and some for a busy machine."""
SILENT = r"stage 0 .*gave no sign of life for 0\.6 s"


def quick(lane: Lane, **changes):
    """Settings under which a silence is soon one."""
    return lane.config(heartbeat_s=0.1, peer_timeout_s=PEER_TIMEOUT_S, **changes)


def test_stopped_idle_sender_is_given_up_after_the_peer_timeout(lane: Lane) -> None:
    with Peer() as peer:
        where = peer.open(bind=lane.address(), config=quick(lane))
        with Link(bind=None, connect=where, config=quick(lane), previous="stage 0") as link:
            link.wait_peers(10)
            peer.send([0], 3 * MIB)
            until(lambda: has_arrived(link, lane, 1))
            peer.stop()
            assert_whole(link.recv_dict(), 0, 3 * MIB)
            with within(GIVEN_UP_S), pytest.raises(PeerLostError, match=SILENT):
                link.recv_dict(timeout_s=10)
            with pytest.raises(PeerLostError, match=SILENT):
                link.recv_control(1)


def test_sender_stopped_within_a_dict_is_given_up_after_the_peer_timeout(lane: Lane) -> None:
    with Peer() as peer:
        settings = quick(lane, chunk_bytes=4096, shm_bytes=MIB)
        where = peer.open(bind=lane.address(), config=settings)
        with Link(bind=None, connect=where, config=settings, previous="stage 0") as link:
            link.wait_peers(10)
            with ThreadPoolExecutor(1) as pool:
                peer.order("send", [0], 128 * MIB)
                waiting = pool.submit(link.recv_dict)
                until(lambda: link.stats()["bytes_received"] > MIB)
                peer.stop()
                with within(GIVEN_UP_S), pytest.raises(PeerLostError, match=SILENT):
                    waiting.result()
            assert link.stats()["dicts_received"] == 0, "all of it had arrived: it was stopped too late"


def test_sender_that_goes_on_in_time_loses_nothing(lane: Lane) -> None:
    with Peer() as peer:
        where = peer.open(bind=lane.address(), config=lane.config())
        with Link(bind=None, connect=where, config=lane.config()) as link:
            link.wait_peers(10)
            peer.order("send", range(60), 3 * MIB)
            received = 0
            for _ in range(3):
                peer.stop()
                with pytest.raises(RecvTimeout):
                    while True:
                        assert_whole(link.recv_dict(timeout_s=0.2), received, 3 * MIB)
                        received += 1
                peer.go_on()
                for _ in range(3):
                    assert_whole(link.recv_dict(), received, 3 * MIB)
                    received += 1
            for i in range(received, 60):
                assert_whole(link.recv_dict(), i, 3 * MIB)
            peer.answer()


def test_time_that_the_receiver_itself_stood_still_is_no_silence(lane: Lane) -> None:
    """As on a machine that stood still, where the sender is the last to go on."""
    settings = lane.config(heartbeat_s=0.1, peer_timeout_s=2.0)
    with Peer() as sender, Peer() as receiver:
        receiver.open(connect=sender.open(bind=lane.address(), config=settings), config=settings)
        for peer in (sender, receiver):
            peer.do("wait_peers")
        for peer in (sender, receiver):
            peer.stop()
        time.sleep(2.5)
        receiver.go_on()
        time.sleep(1.0)
        sender.go_on()
        sender.send([0], MIB)
        receiver.receive([0], MIB)


def test_sender_waits_for_a_stopped_receiver_under_its_deadline(lane: Lane) -> None:
    small = {"receive_limit_bytes": 4 * MIB, "queue_bytes": 16 * MIB, "shm_bytes": 8 * MIB}
    with Link(bind=lane.address(), connect=None, config=quick(lane, **small), next="stage 1") as link:
        with Peer() as peer:
            peer.open(connect=link.bound, config=quick(lane, **small))
            peer.do("wait_peers")
            first = link.isend_dict(numbered(0, 6 * MIB))
            peer.receive([0], 6 * MIB)
            first.wait_sent()
            peer.stop()
            large = numbered(1, 200 * MIB)
            with within(2.0), pytest.raises(SendTimeout, match="stage 1"):
                link.isend_dict(large, timeout_s=0.5).wait_sent(5)
            sent = 2
            with within(5.0), pytest.raises((PoolTimeout, SendTimeout), match="stage 1"):
                while True:
                    link.send_dict(numbered(sent, 6 * MIB), timeout_s=0.5)
                    sent += 1
            peer.go_on()
            peer.receive(range(2, sent), 6 * MIB)
            assert link.next_error() is None


def test_everything_arrives_at_a_receiver_that_goes_on_in_time(lane: Lane) -> None:
    """Longer than the peer timeout, which is the receiver's word about its sender, not the sender's."""
    with (
        Link(bind=lane.address(), connect=None, config=quick(lane, shm_bytes=16 * MIB)) as link,
        Peer() as peer,
    ):
        peer.open(connect=link.bound, config=quick(lane, shm_bytes=16 * MIB))
        peer.do("wait_peers")
        peer.stop()
        tickets = [link.isend_dict(numbered(i, 8 * MIB), timeout_s=20) for i in range(12)]
        link.send_control(b"behind them", route=Route.LINK)
        with pytest.raises(SendTimeout):
            tickets[-1].wait_sent(PEER_TIMEOUT_S + 0.7)
        peer.go_on()
        with within(5.0):
            peer.receive(range(12), 8 * MIB)
            assert peer.do("recv_control") == b"behind them"
        for ticket in tickets:
            ticket.wait_sent(5)
