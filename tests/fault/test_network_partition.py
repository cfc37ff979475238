"""Two machines that are cut off from each other: no FIN, no RST. Both notice, and meet again when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.fault.network import Network, routed_machines
from tests.fault.peer import until, within
from tests.fault.values import assert_whole, numbered
from tests.links import FAST
from zmqpp.config import TransportConfig
from zmqpp.errors import PeerLostError, RecvTimeout
from zmqpp.transport import Link, Route

MIB = 1 << 20
PEER_TIMEOUT_S = 1.0
CONFIG = replace(
    FAST,
    lane="tcp",
    heartbeat_s=0.2,
    peer_timeout_s=PEER_TIMEOUT_S,
    timeout_s=30.0,
    receive_limit_bytes=8 * MIB,
)
NOTICED_S = PEER_TIMEOUT_S + 3.0
"""The timeout, the second look, and some for a busy machine."""
BACK_S = 5.0


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with routed_machines(2) as network:
        yield network


@contextmanager
def linked(
    network: Network, connected: bool = True, config: TransportConfig = CONFIG
) -> Iterator[tuple[Link, Link]]:
    """(sender, receiver), one on each machine."""
    sender = network.machines[0].inside(
        lambda: Link(bind=network.address(0), connect=None, config=config, next="stage 1")
    )
    receiver = network.machines[1].inside(
        lambda: Link(bind=None, connect=network.address(0), config=config, previous="stage 0")
    )
    with sender, receiver:
        if connected:
            sender.wait_peers(10)
            receiver.wait_peers(10)
        try:
            yield sender, receiver
        finally:
            network.mend()


def inside(network: Network, index: int, act: Callable[[], None]) -> None:
    """What opens a socket anew does so on its machine."""
    network.machines[index].inside(act)


def test_both_ends_of_a_cut_notice_and_meet_again_when_it_is_mended(network: Network) -> None:
    with linked(network) as (sender, receiver):
        sender.send_dict(numbered(0, MIB))
        assert_whole(receiver.recv_dict(), 0, MIB)
        started = time.monotonic()
        network.cut(0, 1)
        until(lambda: receiver.previous_error() is not None, NOTICED_S)
        receiver_s = time.monotonic() - started
        until(lambda: sender.next_error() is not None, NOTICED_S)
        sender_s = time.monotonic() - started
        print(f"cut: missed by the receiver after {receiver_s:.2f} s, by the sender after {sender_s:.2f} s")
        assert "stage 0" in str(receiver.previous_error()) and "no sign of life" in str(
            receiver.previous_error()
        )
        assert "stage 1" in str(sender.next_error()) and "acknowledged nothing" in str(sender.next_error())
        inside(network, 0, sender.reopen_send)
        inside(network, 1, receiver.reopen_receive)
        time.sleep(2.0)
        started = time.monotonic()
        network.mend()
        sender.wait_peers(BACK_S)
        receiver.wait_peers(BACK_S)
        print(f"mended: together again after {time.monotonic() - started:.2f} s")
        sender.send_dict(numbered(1, MIB))
        assert_whole(receiver.recv_dict(), 1, MIB)


def test_a_cut_shorter_than_the_peer_timeout_loses_nothing(network: Network) -> None:
    patient = replace(
        CONFIG, peer_timeout_s=4.0
    )  # TCP looks again at growing intervals, and the machine may be busy
    with linked(network, config=patient) as (sender, receiver):
        for i in range(5):
            sender.isend_dict(numbered(i, 3 * MIB))
            network.cut(0, 1)
            time.sleep(0.3)
            network.mend()
            assert_whole(receiver.recv_dict(), i, 3 * MIB)
        assert sender.next_error() is None and receiver.previous_error() is None


def test_a_receiver_that_reads_nothing_for_long_is_not_taken_for_cut_off(network: Network) -> None:
    """Its window is shut, and its kernel answers ever rarer probes: the gaps are longer than the peer timeout."""
    with linked(network) as (sender, receiver):
        tickets = [sender.isend_dict(numbered(i, 8 * MIB)) for i in range(24)]
        with pytest.raises(RecvTimeout):
            receiver.recv_control(5 * PEER_TIMEOUT_S)
        assert not tickets[-1].is_completed(), "they were to fill every buffer on the way"
        assert sender.next_error() is None
        for i in range(24):
            assert_whole(receiver.recv_dict(), i, 8 * MIB)


def test_who_looks_for_its_sender_during_a_partition_finds_it_soon_after(network: Network) -> None:
    """The kernel asks ever more rarely, at last after 11, 19 and 35 seconds: one must ask anew."""
    network.cut(0, 1)
    with linked(network, connected=False) as (sender, receiver):
        time.sleep(12.0)
        network.mend()
        with within(BACK_S):
            receiver.wait_peers(BACK_S)
        sender.send_control(b"here", route=Route.LINK)
        assert receiver.recv_control(5).body == b"here"


def test_a_receiver_that_comes_back_from_a_partition_gets_the_place_it_held(network: Network) -> None:
    """Only it has noticed: its old connection, which nobody closed, must not keep it out."""
    with linked(network) as (sender, receiver):
        network.cut(0, 1)
        until(lambda: receiver.previous_error() is not None, NOTICED_S)
        inside(network, 1, receiver.reopen_receive)
        network.mend()
        with within(BACK_S):
            until(lambda: sender.next_error() is not None, BACK_S)
            with pytest.raises(PeerLostError, match="stage 1"):
                sender.send_dict({"x": 1})
            inside(network, 0, sender.reopen_send)
            receiver.wait_peers(BACK_S)
        sender.send_dict({"x": 2})
        assert receiver.recv_dict() == {"x": 2}


@pytest.mark.parametrize("way", [(0, 1), (1, 0)], ids=["to the receiver", "to the sender"])
def test_a_cut_of_one_direction_is_noticed_at_both_ends(network: Network, way: tuple[int, int]) -> None:
    """The receiver hears nothing, or hangs up, or the sender gets no acknowledgement."""
    with linked(network) as (sender, receiver):
        network.cut(*way, back=False)
        until(lambda: sender.next_error() is not None, 2 * NOTICED_S)
        until(lambda: receiver.previous_error() is not None, 2 * NOTICED_S)
