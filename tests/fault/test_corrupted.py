"""One byte of a message is another: what the checks of head and manifest find, what the checksum, and what nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from tests.fault.peer import within
from tests.fault.proxy import AT, HEAD_SIZE, Nth, Step, corrupt
from tests.fault.raw import BYE, CHUNK, CONTROL, DICT, HELLO
from tests.fault.test_faulty_link import SEEN_S, SIZES, WHERE, assert_found, faulty, receive_all, traffic
from tests.fault.values import assert_whole, numbered
from tests.lanes import Lane
from zmqpp import _tensors
from zmqpp.errors import (
    ChecksumError,
    MalformedError,
    PeerLostError,
    ProtocolError,
    SequenceError,
    VersionError,
)

MESSAGES: dict[str, Callable[[], Nth]] = {
    "hello": lambda: Nth(HELLO),
    "inline dict": lambda: Nth(DICT, 0, inline=True),
    "manifest": lambda: Nth(DICT, 0, inline=False),
    "chunk": lambda: Nth(CHUNK, 3),
    "control": lambda: Nth(CONTROL, 0),
    "bye": lambda: Nth(BYE),
}
ERRORS: dict[str, type[ProtocolError]] = {
    "magic": MalformedError,
    "version": VersionError,
    "kind": MalformedError,
    "route": MalformedError,
    "flags": MalformedError,
    "session": SequenceError,
    "sequence": SequenceError,
    "offset": MalformedError,
    "total": MalformedError,
    "body size": MalformedError,
    "checksum": MalformedError,
}
"""By field, in every kind of message."""
FREE = {"epoch", "tag"}
"""Any value may be meant, but a dict and its chunks must have the same."""


@pytest.fixture
def lane(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """The bytes are the same on both."""
    return Lane("tcp", tmp_path_factory.mktemp("k"))


@pytest.mark.parametrize("field", AT)
@pytest.mark.parametrize("message", MESSAGES)
def test_corrupted_head_is_refused(lane: Lane, message: str, field: str) -> None:
    with faulty(lane, MESSAGES[message](), corrupt(AT[field])) as (sender, receiver):
        traffic(sender)
        sender.close()
        with within(SEEN_S):
            dicts, _, end = receive_all(receiver)
    if field not in FREE:
        assert isinstance(end, ERRORS[field]) and "stage 0" in str(end)
    elif message in ("manifest", "chunk"):
        assert type(end) is MalformedError and "does not continue" in str(end)
    else:
        assert type(end) is PeerLostError and dicts == len(SIZES)


FLIPS = [(m, f, bit) for m in MESSAGES for f in ("kind", "flags", "total") for bit in range(8)]
FLIPS.remove(("bye", "kind", 0))  # makes it an empty control message, which it could be


@pytest.mark.parametrize(("message", "field", "bit"), FLIPS)
def test_flipped_bit_in_a_head_is_refused(lane: Lane, message: str, field: str, bit: int) -> None:
    with faulty(lane, MESSAGES[message](), corrupt(AT[field], 1 << bit)) as (sender, receiver):
        traffic(sender)
        sender.close()
        with within(SEEN_S):
            _, _, end = receive_all(receiver)
    assert isinstance(end, (MalformedError, SequenceError))


def test_corrupted_payload_is_not_noticed_without_a_checksum(lane: Lane) -> None:
    """By design: TCP has its own sum, and a checksum costs a pass over the bytes."""
    with faulty(lane, Nth(CHUNK, 3), corrupt(HEAD_SIZE + 100)) as (sender, receiver):
        sender.isend_dict(numbered(0, SIZES[1]))
        got = receiver.recv_dict(timeout_s=SEEN_S)["x"].numpy()
        assert np.flatnonzero(got != numbered(0, SIZES[1])["x"].numpy()).tolist() == [3 * 4096 + 100]
        sender.send_dict(numbered(1, 10))
        assert_whole(receiver.recv_dict(), 1, 10)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("size", [100, 5000], ids=["inline", "chunked"])
def test_corrupted_manifest_is_refused_or_means_other_values(lane: Lane, size: int, mask: int) -> None:
    """Every byte of it in turn: a named error or a dict, never anything else."""
    end = HEAD_SIZE + 4 + len(_tensors.encode(numbered(0, size)).manifest)
    damage = _OneByteEach(range(HEAD_SIZE, end), mask)
    refused = 0
    while damage.left:
        with faulty(lane, lambda frame: frame[AT["kind"]] == DICT, damage) as (sender, receiver):
            while damage.left and receiver.previous_error() is None:
                sender.isend_dict(numbered(0, size))
                try:
                    assert isinstance(receiver.recv_dict(timeout_s=SEEN_S), dict)
                except ProtocolError:
                    refused += 1
    assert refused > 20


class _OneByteEach:
    """A fault that damages another byte in each message."""

    def __init__(self, at: Iterable[int], mask: int) -> None:
        self.left = list(at)
        self._mask = mask

    def __call__(self, frame: bytes) -> list[Step]:
        return corrupt(self.left.pop(), self._mask)(frame)


@pytest.mark.parametrize("at", [0, 7, -1], ids=["first byte", "eighth byte", "last byte"])
@pytest.mark.parametrize("point", [point for point in WHERE if point != "bye"])
def test_corrupted_body_is_found_by_its_checksum(lane: Lane, point: str, at: int) -> None:
    at = at if at < 0 else HEAD_SIZE + at
    with faulty(lane, WHERE[point](), corrupt(at, 0x10), checksum=True) as (sender, receiver):
        traffic(sender)
        sender.close()
        assert_found(receiver, point, ChecksumError, "checksum")


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("field", AT)
@pytest.mark.parametrize("message", MESSAGES)
def test_corrupted_head_is_found_by_its_checksum(lane: Lane, message: str, field: str, bit: int) -> None:
    """Even in fields where any value could be meant; those that are checked first have their own errors."""
    with faulty(lane, MESSAGES[message](), corrupt(AT[field], 1 << bit), checksum=True) as (sender, receiver):
        traffic(sender)
        sender.close()
        with within(SEEN_S):
            _, _, end = receive_all(receiver)
    assert isinstance(end, ProtocolError) and "stage 0" in str(end)
    if field in FREE:
        assert type(end) is ChecksumError


def test_checksums_of_whole_messages_are_right(lane: Lane) -> None:
    with faulty(lane, Nth(BYE), lambda frame: [frame], checksum=True) as (sender, receiver):
        traffic(sender)
        sender.close()
        assert_found(receiver, "bye", PeerLostError, "closed the link")
