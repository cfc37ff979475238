"""One suite for every lane, between threads and between processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.conformance.echo import ring_of_two
from tests.lanes import LANES, Lane
from tests.links import FAST, assert_same
from zmqpp._tensors import WIRE_DTYPES
from zmqpp.transport import Link, Route

MIB = 1 << 20
WHERE = ("threads", "processes")
PLACES = [(lane, where, {}) for lane in LANES for where in WHERE]
if "shm" in LANES:  # so small that most dicts of this suite are larger than it
    PLACES += [("shm", where, {"shm_bytes": MIB}) for where in WHERE]


def _name(place: tuple[str, str, dict]) -> str:
    lane, where, changes = place
    return "-".join((lane, *(f"{name}={value}" for name, value in changes.items()), where))


@pytest.fixture(scope="module", params=PLACES, ids=_name)
def link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A ring of two; the other place echoes."""
    name, where, changes = request.param
    lane = Lane(name, tmp_path_factory.mktemp("r"))
    with ring_of_two(lane, where, lane.config(**changes)) as here:
        assert here.stats()["lane"] == name
        yield here


def test_every_dtype_arrives_with_the_same_bits(link: Link) -> None:
    sent = {
        name: torch.randint(0, 2, (3, 5 * dtype.itemsize), dtype=torch.uint8).view(dtype)
        for name, dtype in WIRE_DTYPES.items()
    }
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


def test_shapes_strides_and_views_arrive_as_dense_tensors(link: Link) -> None:
    base = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4)
    sent = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:],
        "expanded": torch.tensor([1.0]).expand(4, 5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
    }
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


def test_plain_values_keep_type_order_and_bits(link: Link) -> None:
    sent = {
        "z": None,
        "a": [True, 1, 1.0, -0.0, math.inf, math.nan, 1 << 200, -(1 << 200), 2**64 - 1, -(2**63)],
        "text": ["", "ä", "\ud800lone", b"\x00\xff", b""],
        "nested": {
            7: {"deep": [torch.ones(2), {"x": np.arange(3)}]},
            None: [],
            True: {},
            b"k": 2.5,
            1.5: "f",
        },
    }
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


def test_bytes_and_text_have_no_limit_of_their_own(link: Link) -> None:
    sent = {
        "bytes": b"\xff" * (17 * MIB),
        "nested": ["ä" * (9 * MIB), {"k": b"x" * 70_000}],
        "x": torch.ones(3),
    }
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


def test_numpy_arrays_keep_dtype_and_byte_order(link: Link) -> None:
    record = np.dtype([("id", "<i4"), ("pair", ">f8", (2,)), ("name", "S5")])
    sent = {
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.array(3.5),
        "text": np.array(["ab", "c"]),
        "time": np.array(["2026-01-01"], dtype="M8[s]"),
        "span": np.array([5], dtype="m8[us]"),
        "record": np.zeros(3, dtype=record),
        "none": np.zeros((0, 4), dtype="c8"),
    }
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


INLINE, CHUNK = FAST.inline_bytes, FAST.chunk_bytes
BOUNDARIES = {
    "nothing": 0,
    "a line of memory": 64,
    "inline": INLINE,
    "a quarter of a small segment": MIB // 4,
    "what a receiver may hold of it": MIB // 2,
    "what fits it whole": MIB // 4 * 3,
    "a chunk, and all of it": CHUNK,
    "two chunks": 2 * CHUNK,
}
SIZES = sorted({size + d for size in BOUNDARIES.values() for d in (-129, -64, -1, 0, 1, 64) if size + d >= 0})


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_every_boundary(link: Link, size: int) -> None:
    sent = {"bytes": torch.randint(0, 255, (size,), dtype=torch.uint8), "after": torch.tensor([size])}
    link.send_dict(sent)
    assert_same(link.recv_dict(), sent)


def test_payload_that_ends_at_a_boundary_with_its_manifest(link: Link) -> None:
    """The manifest lies in front of the payload, so the boundary is not where the tensor's size has it."""
    for size in range(MIB // 4 * 3 - 640, MIB // 4 * 3 + 128, 64):
        sent = {"bytes": torch.randint(0, 255, (size,), dtype=torch.uint8)}
        link.send_dict(sent)
        assert_same(link.recv_dict(), sent)


def test_large_dict_of_64_mib(link: Link) -> None:
    sent = {"large": torch.randint(0, 255, (64 * MIB,), dtype=torch.uint8)}
    ticket = link.isend_dict(sent)
    got = link.recv_dict(timeout_s=30)
    ticket.wait()
    assert torch.equal(got["large"], sent["large"])


def test_several_in_flight_arrive_in_order(link: Link) -> None:
    receives = [link.irecv_dict() for _ in range(12)]
    sent = [{"step": i, "x": torch.full((50_000 * (i % 3) + 1,), i)} for i in range(12)]
    sends = [link.isend_dict(values) for values in sent]
    for ticket, values in zip(receives, sent, strict=True):
        assert_same(ticket.wait(), values)
    for send in sends:
        send.wait()


def test_source_may_be_overwritten_after_wait(link: Link) -> None:
    values = torch.ones(2 * MIB)
    link.isend_dict({"x": values}).wait()
    values.zero_()
    assert bool((link.recv_dict()["x"] == 1).all())


def test_received_tensors_are_writable_and_apart(link: Link) -> None:
    receives = [link.irecv_dict() for _ in range(2)]
    for _ in receives:
        link.send_dict({"x": torch.zeros(MIB)})
    first, second = (receive.wait()["x"] for receive in receives)
    first.fill_(7)
    assert not second.any()


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, MIB])
def test_control_messages_keep_body_route_and_tag(link: Link, size: int) -> None:
    body = bytes(size)
    link.send_control(body, route=Route.REQUEST, tag=size)
    got = link.recv_control(10)
    assert (got.body, got.route, got.tag) == (body, Route.REQUEST, size)


def test_control_messages_pass_while_a_dict_is_on_its_way(link: Link) -> None:
    ticket = link.isend_dict({"x": torch.zeros(4 * MIB)})
    for i in range(100):
        link.send_control(b"%d" % i, route=Route.LINK)
    assert [int(link.recv_control(10).body) for _ in range(100)] == list(range(100))
    ticket.wait()
    link.recv_dict()
