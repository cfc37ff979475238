"""A half of a link that broke is opened anew at the same place, and the other half never notices."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from zmqpp.errors import ConfigError, PeerLostError, RecvTimeout, ResourceError
from zmqpp.transport import Link, Relay, Route

SOON_S = 5.0


def await_error(look: object) -> None:
    deadline = time.monotonic() + SOON_S
    while look() is None:  # type: ignore[operator]
        assert time.monotonic() < deadline, "nobody missed the peer"
        time.sleep(0.002)


@pytest.mark.parametrize("lane", ["tcp", "shm"])
def test_a_sender_takes_the_next_receiver_when_its_half_was_reopened(lane: str) -> None:
    with Link(bind="127.0.0.1:0", connect=None, lane=lane) as sender:
        where = sender.bound
        for turn in range(4):
            with Link(bind=None, connect=where, lane=lane) as receiver:
                sender.send_dict({"x": torch.full((300, 300), turn)})
                kept = receiver.recv_dict(timeout_s=SOON_S)["x"]
                assert receiver.stats()["lane"] == lane
            await_error(sender.next_error)
            with pytest.raises(PeerLostError):
                sender.send_dict({"x": torch.zeros(1)})
            sender.reopen_send()
            assert sender.next_error() is None and sender.bound == where
            assert torch.equal(kept, torch.full((300, 300), turn)), "what was received stays"


def test_a_receiver_finds_the_next_sender_when_its_half_was_reopened() -> None:
    with Link(bind="127.0.0.1:0", connect=None) as first:
        where = str(first.bound)
        receiver = Link(bind=None, connect=where)
        first.send_dict({"x": 0})
        assert receiver.recv_dict(timeout_s=SOON_S) == {"x": 0}
    with receiver:
        for turn in range(1, 4):
            await_error(receiver.previous_error)
            receiver.reopen_receive()
            with Link(bind=where, connect=None) as sender:
                sender.send_dict({"x": turn})
                assert receiver.recv_dict(timeout_s=SOON_S) == {"x": turn}


def test_who_waits_in_the_half_that_is_replaced_hears_of_it() -> None:
    with Link(bind="127.0.0.1:0", connect=None) as sender, Link(bind=None, connect=sender.bound) as receiver:
        sender.send_control(b"here", route=Route.LINK)
        assert receiver.recv_control(SOON_S).body == b"here"
        heard: list[Exception] = []

        def wait() -> None:
            try:
                receiver.recv_dict(timeout_s=60)
            except Exception as error:
                heard.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        receiver.reopen_receive()
        waiting.join(SOON_S)
        assert not waiting.is_alive() and len(heard) == 1


@pytest.mark.parametrize("given_up", ["waited for", "cancelled", "forgotten"])
@pytest.mark.parametrize("lane", ["tcp", "shm"])
def test_a_ticket_of_the_half_that_was_replaced_leaves_the_new_one_alone(lane: str, given_up: str) -> None:
    with (
        Link(bind="127.0.0.1:0", connect=None, lane=lane) as sender,
        Link(bind=None, connect=sender.bound, lane=lane) as receiver,
    ):
        filled, after = receiver.irecv_dict(), receiver.irecv_dict()
        sender.send_dict({"old": torch.zeros(5000)})
        deadline = time.monotonic() + SOON_S
        while not filled.is_completed():
            assert time.monotonic() < deadline
        sender.reopen_send()
        receiver.reopen_receive()
        if given_up == "waited for":
            assert list(filled.wait(0)) == ["old"], "what came before is not lost"
        elif given_up == "cancelled":
            assert filled.cancel()
        else:
            del filled
        for turn in range(3):
            sender.send_dict({"new": torch.full((3000,), turn)})
            assert receiver.recv_dict(timeout_s=SOON_S)["new"][0] == turn
        assert after.is_completed()
        if given_up == "waited for":
            with pytest.raises(PeerLostError, match="lost|opened anew"):
                after.wait(SOON_S)
        else:
            assert list(after.wait(SOON_S)) == ["old"], "it takes the place of the one in front"


def test_a_half_that_was_not_asked_for_cannot_be_reopened() -> None:
    with Link(bind="127.0.0.1:0", connect=None) as sender:
        with pytest.raises(ConfigError, match="opened without `connect`"):
            sender.reopen_receive()
    with Link(bind=None, connect=sender.bound) as receiver:
        with pytest.raises(ConfigError, match="opened without `bind`"):
            receiver.reopen_send()


@pytest.fixture
def pair() -> Iterator[tuple[Link, Link]]:
    with Link(bind="127.0.0.1:0", connect=None) as sender, Link(bind=None, connect=sender.bound) as receiver:
        sender.wait_peers(SOON_S)
        yield sender, receiver


def test_a_newer_epoch_ends_the_wait_for_a_dict_of_the_older(pair: tuple[Link, Link]) -> None:
    sender, receiver = pair
    later = threading.Timer(
        0.2, lambda: (sender.set_epoch(3), sender.send_control(b"on", route=Route.NOTICE))
    )
    later.start()
    with pytest.raises(PeerLostError, match="epoch 3 began while a dict of epoch 0 was waited for"):
        receiver.recv_dict(timeout_s=SOON_S)
    later.join()
    assert receiver.recv_control(SOON_S).epoch == 3
    receiver.set_epoch(3)
    sender.send_dict({"x": 1})
    assert receiver.recv_dict(timeout_s=SOON_S) == {"x": 1}


def test_requests_and_dicts_of_an_older_epoch_are_dropped_and_news_are_not(pair: tuple[Link, Link]) -> None:
    sender, receiver = pair
    receiver.set_epoch(2)
    for route in (Route.REQUEST, Route.NOTICE, Route.REPLY):
        sender.send_control(route.name.encode(), route=route)
    sender.send_dict({"old": 1})
    sender.set_epoch(2)
    sender.send_dict({"new": 1})
    assert [receiver.recv_control(SOON_S).body for _ in range(2)] == [b"NOTICE", b"REPLY"]
    assert receiver.recv_dict(timeout_s=SOON_S) == {"new": 1}
    with pytest.raises(RecvTimeout):
        receiver.recv_control(0.05)


def test_a_place_in_the_middle_relays_past_a_half_that_is_replaced() -> None:
    with Link(bind="127.0.0.1:0", connect=None) as before:
        with Link(bind="127.0.0.1:0", connect=before.bound, relay=Relay.FORWARD) as middle:
            with Link(bind=None, connect=middle.bound) as after:
                before.send_control(b"1", route=Route.REQUEST)
                assert after.recv_control(SOON_S).body == middle.recv_control(SOON_S).body == b"1"
            await_error(middle.next_error)
            before.send_control(b"lost with the half", route=Route.REQUEST)
            assert middle.recv_control(SOON_S).body == b"lost with the half"
            middle.reopen_send()
            before.send_control(b"2", route=Route.REQUEST)
            with Link(bind=None, connect=middle.bound) as after:
                assert after.recv_control(SOON_S).body == middle.recv_control(SOON_S).body == b"2"
            assert middle.previous_error() is None


def test_no_message_that_is_passed_on_breaks_the_half_that_just_takes_the_place_of_another() -> None:
    with Link(bind="127.0.0.1:0", connect=None) as before:
        with Link(bind="127.0.0.1:0", connect=before.bound, relay=Relay.FORWARD) as middle:
            over = threading.Event()

            def go_on(act: Callable[[], object]) -> None:
                with contextlib.suppress(PeerLostError, ResourceError):  # said below
                    while not over.is_set():
                        act()

            acts = (
                lambda: before.send_control(b"on", route=Route.REQUEST),
                lambda: middle.recv_control(SOON_S),
            )
            threads = [threading.Thread(target=go_on, args=(act,)) for act in acts]
            for thread in threads:
                thread.start()
            try:
                for _ in range(200):
                    middle.reopen_send()
                    assert middle.next_error() is None and middle.previous_error() is None
                before.send_control(b"the last one", route=Route.REQUEST)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
