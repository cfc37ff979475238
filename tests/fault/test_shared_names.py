"""Names in /dev/shm: there only while a segment is on offer, and removed for those who were killed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fault.peer import Peer, until, within
from tests.fault.segment import SHM, names_of
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from tests.links import ANY_PORT
from zmqpp.transport import Link

MIB = 1 << 20
SHARED = Lane("shm", Path())
CONFIG = SHARED.config()


def assert_usable(where: str | None) -> None:
    with (
        Link(bind=where, connect=None, config=CONFIG) as sender,
        Link(bind=None, connect=where, config=CONFIG) as receiver,
    ):
        sender.send_dict(numbered(1, MIB))
        assert_whole(receiver.recv_dict(), 1, MIB)
        assert sender.stats()["lane"] == receiver.stats()["lane"] == "shm"


def test_segment_has_a_name_only_until_it_was_accepted() -> None:
    with Link(bind=ANY_PORT, connect=None, config=CONFIG) as sender:
        (name,) = names_of(os.getpid())
        found = (SHM / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.geteuid()
        with Link(bind=None, connect=sender.bound, config=CONFIG) as receiver:
            sender.send_dict(numbered(0, MIB))
            assert_whole(receiver.recv_dict(), 0, MIB)
            assert names_of(os.getpid()) == set()
            sender.send_dict(numbered(1, MIB))
            assert_whole(receiver.recv_dict(), 1, MIB)


def test_closed_link_that_nobody_joined_leaves_no_name() -> None:
    with Link(bind=ANY_PORT, connect=None, config=CONFIG):
        assert names_of(os.getpid())
    assert names_of(os.getpid()) == set()


def test_closed_link_frees_its_segment_though_somebody_still_has_the_link() -> None:
    """A traceback, a frame, a cycle may keep the object; memory is not for them to keep."""
    with (
        Link(bind=ANY_PORT, connect=None, config=CONFIG) as sender,
        Link(bind=None, connect=sender.bound, config=CONFIG) as receiver,
    ):
        sender.send_dict(numbered(0, MIB))
        assert_whole(receiver.recv_dict(), 0, MIB)
        assert "/dev/shm/zmqpp" in Path("/proc/self/maps").read_text()
    assert "/dev/shm/zmqpp" not in Path("/proc/self/maps").read_text()
    assert sender.stats()["dicts_sent"] == receiver.stats()["dicts_received"] == 1


def test_name_of_a_killed_sender_is_removed_by_the_next_link() -> None:
    with Peer() as peer:
        where = peer.open(bind=ANY_PORT, config=CONFIG)
        assert names_of(peer.pid)
        peer.kill()
        with within(3.0):
            assert_usable(where)
        assert names_of(peer.pid) == set()


def test_closed_link_frees_dicts_that_nobody_took() -> None:
    config = SHARED.config(shm_bytes=8 * MIB)
    with (
        Link(bind=ANY_PORT, connect=None, config=config) as sender,
        Link(bind=None, connect=sender.bound, config=config) as receiver,
    ):
        receiver.wait_peers(5)
        sent = [sender.isend_dict(numbered(i, 3 * MIB)) for i in range(5)]  # there is not room for all
        until(sent[1].is_sent)
    assert "/dev/shm/zmqpp" not in Path("/proc/self/maps").read_text()


def test_name_is_removed_even_by_a_link_that_uses_the_socket() -> None:
    with Peer() as peer:
        peer.open(bind=ANY_PORT, config=CONFIG)
        peer.kill()
        with Link(bind=ANY_PORT, connect=None, config=SHARED.config(lane="tcp")):
            left = names_of(peer.pid)
        with Link(bind=ANY_PORT, connect=None, config=CONFIG):
            assert left == set()


def test_sender_killed_while_its_offer_is_being_answered_leaves_nothing() -> None:
    """Wherever the kill strikes between the two sides' steps."""
    for delay_ms in (0, 1, 2, 4, 8):
        with Peer() as sender, Peer() as receiver:
            where = sender.open(bind=ANY_PORT, config=CONFIG)
            receiver.order("open", None, where, CONFIG)
            with suppress(TimeoutError):
                until(lambda: False, delay_ms / 1000)
            sender.kill()
            receiver.answer()
            receiver.do("close")  # or it would go on waiting for a sender there
            assert_usable(where)
            assert names_of(sender.pid) | names_of(receiver.pid) == set()


def test_receiver_killed_while_it_answers_leaves_nothing() -> None:
    for delay_ms in (0, 1, 2, 4, 8):
        with Peer() as receiver:
            with Link(bind=ANY_PORT, connect=None, config=CONFIG) as sender:
                receiver.order("open", None, sender.bound, CONFIG)
                with suppress(TimeoutError):
                    until(lambda: False, delay_ms / 1000)
                receiver.kill()
            assert names_of(os.getpid()) | names_of(receiver.pid) == set()


def test_offer_of_a_living_sender_is_left_alone_by_other_links() -> None:
    with Peer() as peer:
        where = peer.open(bind=ANY_PORT, config=CONFIG)
        before = names_of(peer.pid)
        peer.stop()  # alive all the same
        assert_usable(ANY_PORT_OF_ITS_OWN)
        assert names_of(peer.pid) == before
        peer.go_on()
        with Link(bind=None, connect=where, config=CONFIG) as receiver:
            peer.send([3], MIB)
            assert_whole(receiver.recv_dict(), 3, MIB)
            assert receiver.stats()["lane"] == "shm"


ANY_PORT_OF_ITS_OWN = "127.0.0.1:15993"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_a_file(path: Path) -> None:
    target = Path(f"{path}.target")
    target.write_text("precious")
    path.symlink_to(target)


@pytest.mark.parametrize("make", [_fifo, _folder, _link_to_a_file])
def test_other_things_of_that_name_do_no_harm(make: Callable[[Path], None]) -> None:
    path = SHM / f"zmqpp-{os.getpid()}-0123456789abcdef"
    target = Path(f"{path}.target")
    make(path)
    try:
        with within(3.0), Link(bind=ANY_PORT, connect=None, config=CONFIG) as sender:
            with Link(bind=None, connect=sender.bound, config=CONFIG) as receiver:
                sender.send_dict(numbered(0, MIB))
                assert_whole(receiver.recv_dict(), 0, MIB)
        assert not target.exists() or target.read_text() == "precious"
    finally:
        target.unlink(missing_ok=True)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
