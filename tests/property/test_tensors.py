"""Whatever fits the contract comes back the same; whatever bytes arrive, only protocol errors are raised."""

from __future__ import annotations

import ctypes
import string
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.links import assert_same
from zmqpp import _engine
from zmqpp._tensors import WIRE_DTYPES, Encoded, decode, encode
from zmqpp.errors import MalformedError, ProtocolError

ALIGN = _engine.ALIGN
settings.register_profile(
    "zmqpp", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("zmqpp")


def payload_of(encoded: Encoded) -> _engine.Block | None:
    """What the engine lays out from the spans."""
    total = sum((size + ALIGN - 1) // ALIGN * ALIGN for _, size in encoded.spans)
    if total == 0:
        return None
    block = _engine.make_block(total)
    view, offset = memoryview(block), 0
    for address, size in encoded.spans:
        view[offset : offset + size] = ctypes.string_at(address, size)
        offset += (size + ALIGN - 1) // ALIGN * ALIGN
    return block


def round_trip(values: dict[str, Any]) -> dict[str, Any]:
    encoded = encode(values)
    _engine.check_manifest(encoded.manifest)
    return decode(encoded.manifest, payload_of(encoded))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, shape and stride: a dense tensor, then permuted, sliced or expanded."""
    dtype = WIRE_DTYPES[draw(st.sampled_from(sorted(WIRE_DTYPES)))]
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    raw = draw(st.binary(min_size=count, max_size=count))
    bytes_ = torch.tensor([byte % high for byte in raw], dtype=torch.uint8)
    tensor = bytes_.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    if shape and draw(st.booleans()):
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if shape and draw(st.booleans()):
        tensor = tensor[:: draw(st.integers(1, 3))]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(draw(st.integers(0, 3)), *tensor.shape)
    return tensor


# Around the size from which bytes and text travel as buffers.
LARGE = [
    *(bytes(size) for size in (65536, 65537, 65600)),
    *(
        unit * count
        for unit, count in [("x", 65536), ("x", 65537), ("ä", 32768), ("ä", 32769), ("\ud800", 22000)]
    ),
]
arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(endianness="?"),
        hnp.datetime64_dtypes(endianness="?"),
        hnp.timedelta64_dtypes(endianness="?"),
        hnp.byte_string_dtypes(endianness="?"),
        hnp.unicode_string_dtypes(endianness="?"),
        hnp.array_dtypes(subtype_strategy=st.sampled_from(["<i4", ">f8", "S3", "<U2"])),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None), max_size=8),
    st.binary(max_size=8),
    st.sampled_from(LARGE),
)
keys = st.one_of(st.text(max_size=4), st.integers(), st.binary(max_size=3), st.none())
values = st.recursive(
    st.one_of(plain, tensors(), arrays),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=10,
)
dicts = st.dictionaries(st.text(string.printable, max_size=6), values, max_size=5)


@given(dicts)
def test_every_allowed_dict_round_trips(sent: dict[str, Any]) -> None:
    assert_same(round_trip(sent), sent)


@given(st.dictionaries(st.text(max_size=6), tensors(), max_size=5))
def test_dicts_of_tensors_round_trip_however_often_they_repeat(sent: dict[str, torch.Tensor]) -> None:
    first = encode(sent)
    for _ in range(3):
        encoded = encode(sent)
        assert encoded.manifest == first.manifest
        assert [size for _, size in encoded.spans] == [size for _, size in first.spans]
        assert_same(decode(encoded.manifest, payload_of(encoded)), sent)


@pytest.mark.parametrize("value", LARGE, ids=lambda value: f"{type(value).__name__}{len(value)}")
def test_large_bytes_and_text_round_trip_also_as_keys(value: Any) -> None:
    sent = {"x": value, "inner": [{value: value}]}
    assert round_trip(sent) == sent


def test_keys_too_long_for_decimal_text_round_trip() -> None:
    sent = {"a": {10**5000: [torch.ones(1)]}}
    got = round_trip(sent)["a"]
    assert list(got) == [10**5000]
    assert_same(got[10**5000], [torch.ones(1)])
    with pytest.raises(TypeError, match=r"'a'\[int of 16610 bits\].*object"):
        encode({"a": {10**5000: object()}})


def test_large_text_that_is_none_is_refused() -> None:
    block = _engine.make_block(64)
    memoryview(block)[:1] = b"\xff"
    with pytest.raises(MalformedError):
        decode(msgspec.msgpack.encode([[64], [1, "x", [7, 0]]]), block)


@given(st.floats(width=64), st.integers(0, 2**52 - 1))
def test_float_bits_survive(number: float, payload: int) -> None:
    quiet_nan = np.uint64(0x7FF8000000000000 | payload).view(np.float64).item()
    assert_same(round_trip({"f": [number, quiet_nan, -0.0]}), {"f": [number, quiet_nan, -0.0]})


SAMPLES = [
    {},
    {"x": torch.arange(6.0).view(2, 3), "n": [1, None, {"k": "v"}], "a": np.zeros(3, ">i4")},
    {"big": 1 << 100, "wild": "\ud800", "record": np.zeros(2, [("a", "<i4"), ("b", "S3")])},
]


@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_manifests_only_raise_protocol_errors(sent: dict[str, Any], data: st.DataObject) -> None:
    encoded = encode(sent)
    manifest = bytearray(encoded.manifest)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(manifest) - 1))
        manifest[where] = data.draw(st.integers(0, 255))
    try:
        _engine.check_manifest(bytes(manifest))
        decode(bytes(manifest), payload_of(encoded))
    except ProtocolError:
        pass


json_like = st.recursive(
    st.one_of(plain.filter(lambda v: not isinstance(v, int) or -(2**63) <= v < 2**64), st.integers(-2, 6)),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)


@given(json_like, st.integers(0, 3))
def test_invented_manifests_only_raise_protocol_errors(tree: Any, blocks: int) -> None:
    try:
        manifest = msgspec.msgpack.encode([[64] * blocks, tree])
    except UnicodeEncodeError:
        return
    block = _engine.make_block(64 * blocks) if blocks else None
    try:
        _engine.check_manifest(manifest)
        decode(manifest, block)
    except ProtocolError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_as_manifest_only_raise_protocol_errors(manifest: bytes) -> None:
    try:
        _engine.check_manifest(manifest)
        decode(manifest, None)
    except ProtocolError:
        pass


@given(st.binary(max_size=100))
def test_any_bytes_as_message_only_raise_protocol_errors(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        _engine.read_head(frame)


@given(st.data())
def test_mutated_heads_are_read_or_refused(data: st.DataObject) -> None:
    head = bytearray(_engine.write_head(data.draw(st.integers(1, 7)), session=1, body_size=0))
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, 63))] = data.draw(st.integers(0, 255))
    try:
        _engine.read_head(bytes(head))
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "root",
    [
        [1, "x", [2, 0, "float32", False, [1 << 61, 1 << 61]]],
        [1, "x", [2, 0, "float32", False, [-1]]],
        [1, "x", [2, 0, "float32", False, [17]]],
        [1, "x", [2, 1, "float32", False, [16]]],
        [1, "x", [2, 0, "os.system", False, [16]]],
        [1, "x", [2, 0, "float32", 1, [16]]],
        [1, "x", [3, 0, "|O", [8]]],
        [1, "x", [3, 0, "<f4,<f4", [8]]],
        [1, "x", [3, 0, [64, ["a", 0, "|O", [], None]], [1]]],
        [1, "x", [3, 0, [64, ["a", 0, "<i4", [1 << 40], None]], [1]]],
        [1, "x", [6, 1]],
        [1, "x", [6, "0"]],
        [1, "x", [6]],
        [1, "x", [6, 0, 0]],
        [1, "x", [7, -1]],
        [1, [7, 0], 1],
        [1, "x", [9]],
        [1, "x"],
        [1, "x", 1, "x", 2],
        [1, "x", [2, 0, "float32", False, [16]], "x", [2, 0, "float32", False, [16]]],
        [1, 5, 1],
        [0],
        7,
        {"x": 1},
        [1, "x", [0, [6, 0], [6, 0]]],
        [1, "x", [2, 0, "float32", False, [16]], "y", [2, 0, "uint8", False, [64]]],
        [1, "x", [2, 0, "float32", False, [(1 << 62) - 1] * 100_000]],
    ],
)
def test_lying_manifest_is_refused(root: Any) -> None:
    for _ in range(3):  # a manifest that comes again is no better
        with pytest.raises(MalformedError):
            decode(msgspec.msgpack.encode([[64], root]), _engine.make_block(64))


@pytest.mark.parametrize("root", [[1, "x", [2, 0, "float32", False, [0, 1 << 61, 1 << 61]]]])
def test_shape_without_elements_that_torch_cannot_have_is_refused(root: Any) -> None:
    with pytest.raises(MalformedError):
        decode(msgspec.msgpack.encode([[0], root]), None)
