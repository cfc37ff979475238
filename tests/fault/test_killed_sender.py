"""The sender is killed with -9: its receiver keeps and hands out what it has, and says within a bound who was lost."""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.fault.peer import Peer, until, within
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from zmqpp.errors import PeerLostError, RecvTimeout
from zmqpp.transport import Link

MIB = 1 << 20
SEEN_S = 3.0
"""A kill is seen by then: the kernel closes the connection, nobody has to wait for a silence."""
CLOSED_S = 1.0
LOST = "stage 0 .*was lost"


@contextmanager
def receiving_from(peer: Peer, lane: Lane, **changes) -> Iterator[Link]:
    """A link that has heard the peer's hello."""
    where = peer.open(bind=lane.address(), config=lane.config(**changes))
    with Link(bind=None, connect=where, config=lane.config(**changes), previous="stage 0") as link:
        link.wait_peers(10)
        yield link


def has_arrived(link: Link, lane: Lane, dicts: int) -> bool:
    """What was sent through a segment is there at once; nobody counts it before it is taken."""
    return lane.name == "shm" or link.stats()["dicts_received"] == dicts


def assert_lost(link: Link) -> None:
    """Every verb says so, and goes on saying so; closing does not wait for anybody."""
    with within(SEEN_S):
        with pytest.raises(PeerLostError, match=LOST):
            link.recv_dict(timeout_s=10)
    with pytest.raises(PeerLostError, match=LOST):
        link.recv_control(1)
    with pytest.raises(PeerLostError, match=LOST):
        link.irecv_dict().wait()
    assert isinstance(link.previous_error(), PeerLostError)
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


def test_killed_before_its_hello_makes_room_for_the_next_sender(lane: Lane) -> None:
    with Peer() as peer:
        where = peer.open(bind=lane.address(), config=lane.config())
        peer.stop()  # the kernel takes the connection, nobody greets
        with Link(bind=None, connect=where, config=lane.config(), previous="stage 0") as link:
            with within(SEEN_S), pytest.raises(RecvTimeout, match="not connected to .* yet"):
                link.recv_dict(timeout_s=0.3)
            peer.kill()
            with Link(bind=where, connect=None, config=lane.config()) as successor:
                with within(SEEN_S):
                    link.wait_peers(10)
                successor.send_dict(numbered(1, MIB))
                assert_whole(link.recv_dict(), 1, MIB)


def test_killed_right_after_its_hello(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.kill()
        assert_lost(link)
        assert_usable(link.connect, lane)


def test_killed_between_chunks(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane, chunk_bytes=4096, shm_bytes=MIB) as link:
        peer.order("send", range(2), 3 * MIB)
        for i in range(2):
            assert_whole(link.recv_dict(), i, 3 * MIB)
        peer.answer()
        with ThreadPoolExecutor(1) as pool:
            before = link.stats()["bytes_received"]
            peer.order("send", [2], 128 * MIB)
            waiting = pool.submit(link.recv_dict)
            until(lambda: link.stats()["bytes_received"] > before + MIB)
            peer.kill()
            with within(SEEN_S), pytest.raises(PeerLostError, match=LOST):
                waiting.result()
        assert link.stats()["dicts_received"] == 2
        assert_lost(link)
        assert_usable(link.connect, lane)


def test_killed_while_copying_its_tensor(lane: Lane, tmp_path: Path) -> None:
    """Not by SIGKILL, but as suddenly and at one exact byte: where a mapped file ends, reading is a SIGBUS."""
    with Peer() as peer, receiving_from(peer, lane, shm_bytes=64 * MIB) as link:
        peer.send([0], MIB)
        peer.order("call", send_a_file_that_ends_half_way, tmp_path / "short")
        peer.wait_end()
        assert_whole(link.recv_dict(), 0, MIB)
        assert_lost(link)
        assert_usable(link.connect, lane)


def send_a_file_that_ends_half_way(link: Link, path: Path) -> None:
    """Runs in the peer; does not return."""
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    with path.open("w+b") as file:
        file.truncate(16 * MIB)
        mapped = mmap.mmap(file.fileno(), 16 * MIB)
        tensor = torch.frombuffer(mapped, dtype=torch.uint8)
        file.truncate(8 * MIB)
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no core file
        link.send_dict({"x": tensor})


def test_killed_between_dicts(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.send(range(3), 3 * MIB)
        peer.send(range(3, 6), 100)
        peer.do("send_control", b"last words")
        until(lambda: link.stats()["control_received"] == 1 and has_arrived(link, lane, 6))
        peer.kill()
        until(lambda: link.previous_error() is not None)
        assert link.recv_control(1).body == b"last words"
        for i in range(6):
            assert_whole(link.recv_dict(timeout_s=1), i, 3 * MIB if i < 3 else 100)
        assert_lost(link)
        assert_usable(link.connect, lane)


def test_killed_while_the_receiver_holds_tensors(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane) as link:
        peer.send(range(4), 5 * MIB)
        held = [link.recv_dict() for _ in range(4)]
        peer.kill()
        assert_lost(link)
        assert_usable(link.connect, lane)
        for i, values in enumerate(held):
            assert_whole(values, i, 5 * MIB)
            values["x"].fill_(i)  # it is ours
        assert [int(values["x"].sum()) for values in held] == [i * 5 * MIB for i in range(4)]


def test_killed_while_many_receives_are_posted_fails_each(lane: Lane) -> None:
    with Peer() as peer, receiving_from(peer, lane) as link:
        posted = [link.irecv_dict() for _ in range(50)]
        peer.send(range(2), MIB)
        errors: list[Exception] = []

        def wait() -> None:
            try:
                link.recv_control(20)
            except Exception as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: has_arrived(link, lane, 2))
        peer.kill()
        with within(SEEN_S):
            for i, ticket in enumerate(posted[:2]):
                assert_whole(ticket.wait(), i, MIB)
            for ticket in posted[2:]:
                with pytest.raises(PeerLostError, match=LOST):
                    ticket.wait(10)
            waiting.join(10)
        assert [type(error) for error in errors] == [PeerLostError]
        assert_usable(link.connect, lane)
