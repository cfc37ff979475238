"""A receiver gives the link up at the first wrong message, after handing out what came before."""

from __future__ import annotations

import struct

import pytest

from tests.fault.raw import BYE, CANCEL, CHUNK, CONTROL, DICT, HELLO, raw_sender
from zmqpp import _engine
from zmqpp.errors import MalformedError, PeerLostError, RecvTimeout, SequenceError, VersionError

EMPTY_MANIFEST = b"\x92\x90\x91\x01"  # [[], [dict]]


def dict_body(manifest: bytes = EMPTY_MANIFEST) -> bytes:
    return struct.pack("<I", len(manifest)) + manifest


def test_well_formed_messages_by_hand_are_received() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(CONTROL, b"first")
        sender.message(DICT, dict_body())
        sender.message(BYE)
        assert link.recv_control(5).body == b"first"
        assert link.recv_dict() == {}
        with pytest.raises(PeerLostError, match="stage 0 .* closed the link"):
            link.recv_dict()


def test_other_wire_version_is_refused_naming_both() -> None:
    with raw_sender() as (sender, link):
        head = bytearray(_engine.write_head(HELLO))
        head[4] = 9
        sender.frames(bytes(head))
        with pytest.raises(VersionError, match=r"wire version 9.*version 4.*same zmqpp release"):
            link.recv_control(5)


def test_sequence_gap_is_detected_behind_what_came_before() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(CONTROL, b"one")
        sender.message(CONTROL, b"three", sequence=3)
        assert link.recv_control(5).body == b"one"
        with pytest.raises(SequenceError, match="message 3 came where 2 was expected"):
            link.recv_control(5)


def test_repeated_message_is_detected() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(CONTROL, b"one")
        sender.message(CONTROL, b"one", sequence=1)
        link.recv_control(5)
        with pytest.raises(SequenceError):
            link.recv_control(5)


def test_other_session_in_the_middle_is_detected() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(CONTROL, b"x", session=78)
        with pytest.raises(SequenceError, match="another session"):
            link.recv_control(5)


def test_session_without_hello_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.message(CONTROL, b"x")
        with pytest.raises(SequenceError, match="began with a control message"):
            link.recv_control(5)


BIG = 1 << 39
WRONG = {
    "no head": [b"hello"],
    "empty": [b""],
    "two frames": [_engine.write_head(CONTROL, session=77, sequence=1), b"x"],
    "magic": [b"HTTP" + bytes(60)],
    "kind": [_engine.write_head(9, session=77, sequence=1)],
    "route": [_engine.write_head(CONTROL, route=9, session=77, sequence=1)],
    "flags": [_engine.write_head(CONTROL, flags=1, session=77, sequence=1)],
    "body larger than announced": [_engine.write_head(CONTROL, session=77, sequence=1, body_size=1) + b"xy"],
    "cancel with a body": [_engine.write_head(CANCEL, session=77, sequence=1, body_size=1) + b"x"],
    "cancel with a size": [_engine.write_head(CANCEL, session=77, sequence=1, total=64)],
    "body missing": [_engine.write_head(CONTROL, session=77, sequence=1, body_size=1)],
    "dict larger than limit": [
        _engine.write_head(DICT, session=77, sequence=1, total=BIG, body_size=8) + dict_body()
    ],
    "manifest beyond its message": [
        _engine.write_head(DICT, session=77, sequence=1, body_size=8) + struct.pack("<I", 99) + bytes(4)
    ],
    "manifest with a map": [
        _engine.write_head(DICT, session=77, sequence=1, body_size=5) + dict_body(b"\x80")
    ],
    "array bomb": [
        _engine.write_head(DICT, session=77, sequence=1, body_size=9) + dict_body(b"\xdd\xff\xff\xff\xff")
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_malformed_message_is_refused(name: str) -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.frames(*WRONG[name])
        with pytest.raises(MalformedError):
            link.recv_dict(timeout_s=5)


def test_checksum_field_is_reserved() -> None:
    with raw_sender() as (sender, link):
        head = bytearray(_engine.write_head(CONTROL, session=77, sequence=1))
        head[60] = 1
        sender.hello()
        sender.frames(bytes(head))
        with pytest.raises(MalformedError, match="checksum"):
            link.recv_control(5)


def test_chunk_without_dict_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(CHUNK, bytes(64), total=64)
        with pytest.raises(SequenceError, match="without its dict"):
            link.recv_dict(timeout_s=5)


@pytest.mark.parametrize("fields", [{"offset": 64}, {"total": 256}, {"tag": 1}, {"epoch": 1}])
def test_chunk_that_does_not_continue_its_dict_is_refused(fields: dict[str, int]) -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(), total=128)
        sender.message(CHUNK, bytes(64), **({"total": 128} | fields))
        with pytest.raises(MalformedError, match="does not continue"):
            link.recv_dict(timeout_s=5)


def test_chunk_beyond_the_announced_size_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(), total=64)
        sender.message(CHUNK, bytes(128), total=64)
        with pytest.raises(MalformedError, match="outside the announced"):
            link.recv_dict(timeout_s=5)


def test_second_dict_before_the_first_is_complete_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(), total=128)
        sender.message(DICT, dict_body())
        with pytest.raises(SequenceError, match="before the chunks"):
            link.recv_dict(timeout_s=5)


def test_cancelled_dict_is_forgotten() -> None:
    with raw_sender() as (sender, link):
        waiting = link.irecv_dict()
        sender.hello()
        sender.message(DICT, dict_body(), total=128, tag=5)
        sender.message(CHUNK, bytes(64), total=128, tag=5)
        sender.message(CONTROL, b"between")
        sender.message(CANCEL, tag=5)
        sender.message(DICT, dict_body())
        assert waiting.wait() == {}
        assert link.recv_control(5).body == b"between"
        with pytest.raises(RecvTimeout):
            link.recv_dict(timeout_s=0.1)


def test_cancel_without_incomplete_dict_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body())
        sender.message(CANCEL)
        assert link.recv_dict() == {}
        with pytest.raises(SequenceError, match="a cancel came without an incomplete dict"):
            link.recv_dict(timeout_s=5)


@pytest.mark.parametrize("fields", [{"tag": 1}, {"epoch": 1}])
def test_cancel_of_another_dict_is_refused(fields: dict[str, int]) -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(), total=128)
        sender.message(CANCEL, **fields)
        with pytest.raises(MalformedError, match="does not fit the incomplete dict"):
            link.recv_dict(timeout_s=5)


def test_chunk_behind_a_cancel_is_refused() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(), total=128)
        sender.message(CANCEL)
        sender.message(CHUNK, bytes(64), total=128)
        with pytest.raises(SequenceError, match="without its dict"):
            link.recv_dict(timeout_s=5)


def test_manifest_that_does_not_fit_the_payload_fails_only_its_receive() -> None:
    with raw_sender() as (sender, link):
        sender.hello()
        sender.message(DICT, dict_body(b"\x92\x91\x40\x91\x01"))  # 64 bytes promised, none there
        sender.message(DICT, dict_body())
        with pytest.raises(MalformedError, match="its buffers make 64 bytes, the payload has 0"):
            link.recv_dict(timeout_s=5)
        assert link.recv_dict(timeout_s=5) == {}
