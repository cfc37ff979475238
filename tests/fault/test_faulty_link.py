"""A link that loses, repeats, reorders, cuts or delays one message: the receiver says so and hands out no wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.fault.peer import until, within
from tests.fault.proxy import HEAD_SIZE, Fault, Nth, delay, drop, duplicate, faithful, proxied, swap, truncate
from tests.fault.raw import BYE, CHUNK, CONTROL, DICT, HELLO
from tests.fault.values import assert_whole, numbered
from tests.lanes import SOCKET_LANES, Lane
from zmqpp.config import TransportConfig
from zmqpp.errors import MalformedError, PeerLostError, RecvTimeout, SequenceError, ZmqppError
from zmqpp.transport import Link, Route

CHUNK_BYTES = 4096
SIZES = (100, 6 * CHUNK_BYTES, 4 * CHUNK_BYTES + 1, 100)
"""Of the dicts of `traffic`: inline ones and ones of several chunks."""
SEEN_S = 3.0
WHERE: dict[str, Callable[[], Nth]] = {
    "hello": lambda: Nth(HELLO),
    "inline dict": lambda: Nth(DICT, 1, inline=True),
    "manifest": lambda: Nth(DICT, 0, inline=False),
    "first chunk": lambda: Nth(CHUNK, 0),
    "middle chunk": lambda: Nth(CHUNK, 3),
    "last chunk": lambda: Nth(CHUNK, 5),
    "control": lambda: Nth(CONTROL, 1),
    "bye": lambda: Nth(BYE),
}
"""Each point of a transfer."""


@pytest.fixture(params=SOCKET_LANES)
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """Those whose payload passes through the relay."""
    return Lane(request.param, tmp_path_factory.mktemp("k"))


def settings(lane: Lane, **changes: Any) -> TransportConfig:
    return lane.config(
        **{"chunk_bytes": CHUNK_BYTES, "inline_bytes": 1024, "heartbeat_s": 0.1, "linger_s": 0.5} | changes
    )


@contextmanager
def faulty(
    lane: Lane, which: Callable[[bytes], bool], fault: Fault, **changes: Any
) -> Iterator[tuple[Link, Link]]:
    """(sender, receiver) with the relay between them."""
    config = settings(lane, **changes)
    with (
        Link(bind=lane.address(), connect=None, config=config, next="stage 1") as sender,
        proxied(sender.bound, which, fault) as where,
        Link(bind=None, connect=where, config=config, previous="stage 0") as receiver,
    ):
        with suppress(PeerLostError):  # it may be over already
            sender.wait_peers(5)  # a link that has no peer yet would not linger for one
        yield sender, receiver


def traffic(sender: Link) -> None:
    """Dicts and control messages, until the receiver gives up, then the goodbye."""
    with suppress(PeerLostError):
        for i, size in enumerate(SIZES):
            sender.isend_dict(numbered(i, size))
            if i % 2:
                sender.send_control(b"control %d" % i, route=Route.LINK)


def receive_all(receiver: Link) -> tuple[int, int, ZmqppError]:
    """How many dicts and control messages came, in order and whole, before the error that ended it."""
    dicts = 0
    try:
        while True:
            assert_whole(receiver.recv_dict(timeout_s=SEEN_S), dicts, SIZES[dicts])
            dicts += 1
    except ZmqppError as error:
        end = error
    controls = 0
    with pytest.raises(type(end)):
        while True:
            assert receiver.recv_control(0.1).body == b"control %d" % (2 * controls + 1)
            controls += 1
    return dicts, controls, end


BEFORE = {
    "hello": (0, 0),
    "inline dict": (3, 1),
    "manifest": (1, 0),
    "first chunk": (1, 0),
    "middle chunk": (1, 0),
    "last chunk": (1, 0),
    "control": (4, 1),
    "bye": (4, 2),
}
"""Dicts and control messages in front of each point: what must be handed out before the error. The first control
message may pass chunks of the dict before it, so there can be one more of those."""


def assert_found(receiver: Link, point: str, error: type[ZmqppError], text: str) -> None:
    with within(SEEN_S):
        dicts, controls, end = receive_all(receiver)
    assert type(end) is error
    assert text in str(end) and "stage 0" in str(end)
    least_dicts, least_controls = BEFORE[point]
    assert dicts == least_dicts and controls >= least_controls


def test_faithful_relay_changes_nothing(lane: Lane) -> None:
    with faulty(lane, Nth(HELLO), faithful) as (sender, receiver):
        traffic(sender)
        sender.close()
        assert_found(receiver, "bye", PeerLostError, "closed the link")


@pytest.mark.parametrize("point", WHERE)
def test_lost_message_is_noticed_at_the_next_one(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), drop) as (sender, receiver):
        traffic(sender)
        sender.close()
        if point == "bye":  # the last one: that the connection ends without it
            assert_found(receiver, point, PeerLostError, "its connection broke without a goodbye")
        elif point == "hello":
            assert_found(receiver, point, SequenceError, "a session began with a dict")
        else:
            assert_found(receiver, point, SequenceError, "was expected; messages were lost")


@pytest.mark.parametrize("point", WHERE)
def test_repeated_message_is_noticed_at_once(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), duplicate) as (sender, receiver):
        traffic(sender)
        sender.close()
        with within(SEEN_S):
            dicts, _, end = receive_all(receiver)
        if point == "bye":  # the first one ended it
            assert type(end) is PeerLostError and dicts == 4
        else:
            assert type(end) is SequenceError and "stage 0" in str(end)
            after = {"inline dict": 4, "last chunk": 2}  # the first copy was the right one
            assert dicts == after.get(point, BEFORE[point][0])


@pytest.mark.parametrize("point", WHERE)
def test_reordered_messages_are_noticed_at_once(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), swap) as (sender, receiver):
        traffic(sender)
        sender.close()
        if point == "bye":  # there is no next one
            assert_found(receiver, point, PeerLostError, "closed the link")
        else:
            assert_found(receiver, point, SequenceError, "messages were lost")


@pytest.mark.parametrize("size", [0, 1, HEAD_SIZE - 1, HEAD_SIZE, -1], ids=lambda size: f"to {size}")
@pytest.mark.parametrize("point", WHERE)
def test_shortened_message_is_malformed(lane: Lane, point: str, size: int) -> None:
    if point == "bye" and size == HEAD_SIZE:
        size = HEAD_SIZE - 2  # it has no body to lose
    with faulty(lane, WHERE[point](), truncate(size)) as (sender, receiver):
        traffic(sender)
        sender.close()
        assert_found(receiver, point, MalformedError, "bytes")


@pytest.mark.parametrize("point", WHERE)
def test_delay_within_the_peer_timeout_loses_nothing(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), delay(0.3), peer_timeout_s=1.0, linger_s=2.0) as (sender, receiver):
        traffic(sender)
        sender.close()
        assert_found(receiver, "bye", PeerLostError, "closed the link")


@pytest.mark.parametrize("point", ["hello", "middle chunk", "control"])
def test_delay_beyond_the_peer_timeout_loses_the_sender(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), delay(5), peer_timeout_s=0.4) as (sender, receiver):
        traffic(sender)
        assert_found(receiver, point, PeerLostError, "gave no sign of life for 0.4 s")


def test_delayed_receive_keeps_its_place(lane: Lane) -> None:
    """A receive whose deadline passes meanwhile says so, and the next one gets the dict."""
    with faulty(lane, Nth(CHUNK, 3), delay(0.5)) as (sender, receiver):
        sender.isend_dict(numbered(0, SIZES[1]))
        with within(SEEN_S), pytest.raises(RecvTimeout):
            receiver.recv_dict(timeout_s=0.2)
        assert_whole(receiver.recv_dict(), 0, SIZES[1])


@pytest.mark.parametrize("point", [point for point in WHERE if point != "bye"])
def test_sender_hears_that_its_receiver_gave_up(lane: Lane, point: str) -> None:
    with faulty(lane, WHERE[point](), duplicate) as (sender, receiver):
        traffic(sender)
        with within(SEEN_S):
            until(lambda: receiver.previous_error() is not None)
            until(lambda: sender.next_error() is not None)
        assert isinstance(receiver.previous_error(), SequenceError)
        assert isinstance(sender.next_error(), PeerLostError)
        with pytest.raises(PeerLostError, match="stage 1"):
            sender.send_dict({"x": 1})
