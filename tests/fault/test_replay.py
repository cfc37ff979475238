"""Without keys anybody can listen; what was heard is still of no use within a session that it does not belong to."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from tests.fault.raw import CONTROL, RawSender, raw_sender
from tests.fault.tap import tapped
from tests.fault.zmtp import is_dropped, long_frame_header, messages_of, shake_hands, stranger
from tests.links import ANY_PORT, FAST
from zmqpp.errors import PeerLostError, ProtocolError, SequenceError
from zmqpp.transport import Link, Route


@pytest.fixture
def captured() -> list[bytes]:
    """A session's messages: a hello, a dict, a control message."""
    with Link(bind=ANY_PORT, connect=None, config=FAST, name="by hand", lane="tcp") as sender:
        with (
            tapped(sender.bound) as tap,
            Link(bind=None, connect=tap.where, config=FAST, lane="tcp") as receiver,
        ):
            sender.send_dict({"x": 1})
            sender.send_control(b"heard", route=Route.LINK)
            assert receiver.recv_dict() == {"x": 1}
            assert receiver.recv_control(5).body == b"heard"
            return messages_of(bytes(tap.from_bound))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_message_of_an_earlier_session_ends_the_link_and_is_not_used(
    captured: list[bytes], which: int
) -> None:
    with raw_sender() as (sender, receiver):
        sender.hello()
        receiver.wait_peers(5)
        sender.frames(captured[which])
        with pytest.raises(SequenceError):
            receiver.recv_control(5)
        with pytest.raises(ProtocolError):
            receiver.recv_dict(timeout_s=0.2)


def test_a_message_of_this_session_sent_again_ends_the_link_and_is_used_once() -> None:
    with raw_sender() as (sender, receiver):
        heard: list[bytes] = []
        said = sender.frames
        sender.frames = lambda *frames: (heard.extend(frames), said(*frames))[1]  # type: ignore[method-assign]
        sender.hello()
        sender.message(CONTROL, b"once", route=int(Route.LINK))
        assert receiver.recv_control(5).body == b"once"
        RawSender.frames(sender, heard[1])
        with pytest.raises(SequenceError):
            receiver.recv_control(5)


def test_a_session_said_again_where_its_sender_was_lost_is_not_taken_for_it(
    captured: list[bytes],
) -> None:
    said = b"".join(long_frame_header(len(message)) + message for message in captured)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with Link(bind=None, connect=where, config=FAST) as receiver:
            first, _ = server.accept()
            with first:
                shake_hands(first, b"PUSH")
                first.sendall(said)
                assert receiver.recv_control(5).body == b"heard" and receiver.recv_dict() == {"x": 1}
            server.settimeout(2)
            try:
                second, _ = server.accept()
                with second:
                    shake_hands(second, b"PUSH")
                    second.sendall(said)
                    assert is_dropped(second, 5)
            except OSError:
                pass  # it does not even come back
            with pytest.raises(PeerLostError):
                receiver.recv_control(5)
            assert receiver.stats()["control_received"] == 1


def test_a_receivers_bytes_said_again_do_not_take_its_place() -> None:
    quick = replace(FAST, handshake_s=0.3)
    with Link(bind=ANY_PORT, connect=None, config=quick) as sender:
        with tapped(sender.bound) as tap, Link(bind=None, connect=tap.where, config=quick) as receiver:
            sender.wait_peers(5)
            with stranger(sender.bound, bytes(tap.from_connecting)) as replay:
                assert is_dropped(replay, 5)
            sender.send_control(b"for one", route=Route.LINK)
            assert receiver.recv_control(5).body == b"for one"
            assert sender.next_error() is None
