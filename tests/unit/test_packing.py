"""Packed tensors: the very bytes and scales that plain torch makes, and nothing that is not theirs accepted."""

from __future__ import annotations

import logging
import math
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import torch

from tests.links import assert_same
from tests.property.test_tensors import payload_of
from zmqpp import _engine, _packing, _tensors
from zmqpp._manifest import PACKED_FORMATS, PACKED_NUMBERS, PACKED_RUN
from zmqpp.config import COMPRESSIONS
from zmqpp.errors import ConfigError, DeviceError, MalformedError, ResourceError, UnsupportedError

FORMS = {"fp8": (448.0, torch.float8_e4m3fn), "int8": (127.0, torch.int8)}
EACH = [(number, form) for number in PACKED_NUMBERS for form in PACKED_FORMATS]
each = pytest.mark.parametrize(("number", "form"), EACH, ids=[" ".join(one) for one in EACH])
TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def plain_scales(x: torch.Tensor, form: str) -> torch.Tensor:
    """(rows, runs): what docs/wire_format.md says, in torch."""
    limit, _ = FORMS[form]
    most = torch.tensor(LARGEST) / limit
    if float(most) * limit > LARGEST:
        most = torch.nextafter(most, torch.tensor(0.0))
    largest = runs_of(x).abs().amax(-1)
    scales = (largest / limit).clamp(TINY, float(most))
    return torch.where(largest.isfinite(), scales, torch.nan)


def plain_codes(x: torch.Tensor, form: str, scales: torch.Tensor) -> torch.Tensor:
    """(rows, columns), as bytes."""
    _, dtype = FORMS[form]
    divided = runs_of(x) * (1 / scales)[..., None]
    divided = torch.where(scales.isnan()[..., None], 0.0, divided)
    rounded = divided if form == "fp8" else divided.round()
    return rounded.to(dtype).view(torch.uint8).flatten(1)[:, : x.shape[1]]


def plain_values(codes: torch.Tensor, scales: torch.Tensor, form: str, dtype: torch.dtype) -> torch.Tensor:
    wide = runs_of(codes.view(FORMS[form][1]).float())
    return (wide * scales[..., None]).flatten(1)[:, : codes.shape[1]].to(dtype)


def runs_of(x: torch.Tensor) -> torch.Tensor:
    """(rows, runs, 128), padded with zeros."""
    lacking = -x.shape[1] % PACKED_RUN
    return torch.nn.functional.pad(x.float(), (0, lacking)).unflatten(1, (-1, PACKED_RUN))


def check(x: torch.Tensor, form: str) -> torch.Tensor:
    """Both ways against plain torch; returns what came back."""
    codes, scale_bytes = _packing.pack(x, form)
    scales = scale_bytes.view(torch.float32).view(x.shape[0], -1)
    wanted = plain_scales(x, form)
    assert_same_bits(scales, wanted)
    assert torch.equal(codes.view(x.shape), plain_codes(x, form, wanted))
    name = next(name for name, dtype in PACKED_NUMBERS.items() if dtype == x.dtype)
    back = _packing.unpack(codes, scale_bytes, name, form, list(x.shape), None)
    assert_same_bits(back, plain_values(codes.view(x.shape), scales, form, x.dtype))
    return back


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Where neither is NaN: NaN is NaN, whatever its bits."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(got.isnan(), wanted.isnan())
    bits = {4: torch.int32, 2: torch.int16}[got.dtype.itemsize]
    there = ~got.isnan()
    assert torch.equal(got[there].view(bits), wanted[there].view(bits))


@each
def test_rows_of_any_length_are_packed_as_torch_would(number: str, form: str) -> None:
    torch.manual_seed(1)
    for columns in range(1, 301):
        x = torch.randn(3, columns) * 10 ** torch.linspace(-4, 4, 3)[:, None]
        check(x.to(PACKED_NUMBERS[number]), form)


@each
def test_a_large_tensor_is_packed_as_torch_would(number: str, form: str) -> None:
    torch.manual_seed(2)
    check((torch.randn(257, 4096) * torch.rand(257, 4096).exp()).to(PACKED_NUMBERS[number]), form)


@pytest.mark.parametrize("form", PACKED_FORMATS)
@pytest.mark.parametrize("number", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_packed_as_torch_would(number: str, form: str) -> None:
    """In order, so that most runs hold numbers of one size: denormals with denormals, infinities with NaN."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    check(bits.view(PACKED_NUMBERS[number]).view(-1, 1024), form)


@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_float32_of_every_size_is_packed_as_torch_would(form: str) -> None:
    torch.manual_seed(3)
    bits = torch.arange(0, 1 << 31, (1 << 31) // (1 << 18), dtype=torch.int64).to(torch.int32)
    bits = bits ^ torch.randint(0, 1 << 12, bits.shape, dtype=torch.int32)
    bits[::2] |= torch.tensor(-(1 << 31), dtype=torch.int32)
    check(bits.view(torch.float32).view(-1, 512), form)


@each
def test_ties_go_to_the_even_code(number: str, form: str) -> None:
    """The largest decides the scale, which is 1, so that the others are what is rounded."""
    limit, dtype = FORMS[form]
    codes = torch.arange(0, 127, dtype=torch.uint8)
    values = codes.view(dtype).float()
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([torch.tensor([limit]), middles, torch.tensor([-limit])])[None].to(PACKED_NUMBERS[number])
    exact = x.float()[0, 1:-1] == middles
    packed = _packing.pack(x, form)[0][1:-1]
    assert bool(((packed[exact] & 1) == 0).all()) and int(exact.sum()) > 60
    check(x, form)


@each
def test_what_is_no_number_makes_its_whole_run_none_and_no_other(number: str, form: str) -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        x = torch.ones(4, 300, dtype=PACKED_NUMBERS[number])
        x[1, 130] = wrong
        back = check(x, form)
        assert bool(back[1, 128:256].isnan().all())
        back[1, 128:256] = x[1, 128:256] = 1
        assert torch.equal(back, x)


@each
def test_zeros_come_back_as_zeros(number: str, form: str) -> None:
    x = torch.zeros(2, 200, dtype=PACKED_NUMBERS[number])
    x[0] = -0.0
    assert bool((check(x, form) == 0).all())


@each
def test_the_largest_and_the_smallest_numbers_stay_numbers(number: str, form: str) -> None:
    kind = torch.finfo(PACKED_NUMBERS[number])
    x = torch.full((4, 128), 1.0, dtype=PACKED_NUMBERS[number])
    x[0, 0], x[1, 0], x[2] = kind.max, kind.min, kind.smallest_normal
    x[3] = kind.smallest_normal * torch.linspace(0, 1, 128)
    back = check(x, form)
    assert bool(back.isfinite().all())
    assert back[0, 0].item() == pytest.approx(kind.max, rel=1e-6)
    assert back[1, 0].item() == pytest.approx(kind.min, rel=1e-6)


@each
def test_every_code_reads_as_torch_reads_it(number: str, form: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for scale in (1.0, 1e-3, 3.7e-40, 1e30, 2.4e-7, -1.0, math.inf, math.nan):
        scales = torch.full((2,), scale)
        got = _packing.unpack(codes, scales.view(torch.uint8), number, form, [1, 256], None)
        wanted = plain_values(codes[None], scales[None], form, PACKED_NUMBERS[number])
        assert_same_bits(got, wanted)


# ---- in dicts --------------------------------------------------------------------------------------------


def sent(values: dict[str, Any], form: str) -> dict[str, Any]:
    encoded = _tensors.encode(values, form)
    _engine.check_manifest(encoded.manifest)
    return _tensors.decode(encoded.manifest, payload_of(encoded))


def sizes(values: dict[str, Any], form: str = "fp8") -> list[int]:
    return [size for _, size in _tensors.encode(values, form).spans]


def test_configuration_and_wire_name_the_same_forms() -> None:
    assert ("none", *PACKED_FORMATS) == COMPRESSIONS
    with pytest.raises(ConfigError, match="no form 'fp7'"):
        _packing.pack(torch.ones(2, 2048), "fp7")


def test_only_large_tensors_of_floats_in_rows_are_packed() -> None:
    kept = {
        "small": torch.ones(2, 511),
        "flat": torch.ones(5000),
        "whole numbers": torch.ones(64, 64, dtype=torch.int32),
        "wide": torch.ones(64, 64, dtype=torch.float64),
        "already small": torch.ones(64, 64).to(torch.float8_e4m3fn),
        "columns of one": torch.ones(5000, 1),
        "list": [1, 2.5],
    }
    assert_same(sent(kept, "fp8"), kept)
    assert sizes({"x": torch.ones(2, 512)}) == [1024, 32]
    assert sizes({"x": torch.ones(16, 3, 100, dtype=torch.bfloat16)}) == [4800, 192]


def test_a_dict_comes_back_in_order_with_its_shapes_and_dtypes() -> None:
    torch.manual_seed(4)
    values = {
        "hidden": torch.randn(16, 4096).bfloat16(),
        "step": 7,
        "residual": torch.randn(16, 4096).bfloat16(),
        "deep": [{"x": torch.randn(4, 3, 192, dtype=torch.float16)}],
        "ids": torch.arange(5000),
    }
    for _ in range(4):  # what repeats takes short cuts, which packed dicts must not
        got = sent(values, "int8")
        assert list(got) == list(values) and got["step"] == 7
        assert torch.equal(got["ids"], values["ids"])
        for one, other in ((got["hidden"], values["hidden"]), (got["deep"][0]["x"], values["deep"][0]["x"])):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            torch.testing.assert_close(one, other, rtol=0, atol=0.05)
        got["hidden"].zero_()  # writable, and nobody else's


@pytest.mark.parametrize("form", PACKED_FORMATS)
def test_tensors_that_do_not_lie_in_order_are_packed_as_their_values(form: str) -> None:
    x = torch.randn(3, 64, 96)
    views = {
        "permuted": x.permute(1, 2, 0),
        "sliced": x[:, ::2, 5:],
        "expanded": x[:1].expand(4, 64, 96),
        "negated": torch._neg_view(x),
        "parameter": torch.nn.Parameter(x),
        "tracked": (x.clone().requires_grad_() * 2),
    }
    for name, value in views.items():
        got = sent({name: value}, form)[name]
        wanted = sent({name: value.detach().clone(memory_format=torch.contiguous_format)}, form)[name]
        assert torch.equal(got, wanted) and not got.requires_grad


def test_a_tensor_without_memory_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'x'.*cannot be sent.*no memory"):
        _tensors.encode({"x": torch._efficientzerotensor((64, 64))}, "fp8")


def test_packed_bytes_live_as_long_as_they_are_described() -> None:
    x = torch.randn(64, 512)
    encoded = _tensors.encode({"x": x}, "fp8")
    wanted = _tensors.decode(encoded.manifest, payload_of(encoded))["x"]
    others = [_tensors.encode({"x": torch.zeros(64, 512)}, "fp8") for _ in range(8)]
    x.zero_()
    assert torch.equal(_tensors.decode(encoded.manifest, payload_of(encoded))["x"], wanted)
    del others


def test_without_compression_nothing_is_looked_at() -> None:
    x = torch.randn(64, 512)
    assert sizes({"x": x}, "none") == [x.nbytes]
    assert _tensors.encode({"x": x}).spans[0][0] == x.data_ptr()


# ---- from the wire ---------------------------------------------------------------------------------------

GOOD: list[Any] = [8, 0, 1, "fp8", "bfloat16", False, [2, 32]]
WRONG: dict[str, tuple[list[Any], str]] = {
    "another form": ([8, 0, 1, "fp4", "bfloat16", False, [2, 32]], "packed as 'fp4'"),
    "no form": ([8, 0, 1, None, "bfloat16", False, [2, 32]], "packed as None"),
    "another dtype": ([8, 0, 1, "fp8", "float64", False, [2, 32]], "'float64' can be packed"),
    "no dtype": ([8, 0, 1, "fp8", ["float16"], False, [2, 32]], "can be packed"),
    "a number for where it was": ([8, 0, 1, "fp8", "bfloat16", 1, [2, 32]], "can be packed"),
    "no dimensions": ([8, 0, 1, "fp8", "bfloat16", False, []], "shape"),
    "no values": ([8, 0, 1, "fp8", "bfloat16", False, [2, 0]], "shape"),
    "negative": ([8, 0, 1, "fp8", "bfloat16", False, [2, -32]], "no dimension"),
    "more values": ([8, 0, 1, "fp8", "bfloat16", False, [2, 33]], "buffer 0 has 64 bytes"),
    "fewer values": ([8, 0, 1, "fp8", "bfloat16", False, [2, 31]], "buffer 0 has 64 bytes"),
    "more runs": ([8, 0, 1, "fp8", "bfloat16", False, [4, 16]], "buffer 1 has 8 bytes"),
    "fewer runs": ([8, 0, 1, "fp8", "bfloat16", False, [64]], "buffer 1 has 8 bytes"),
    "beyond 64 bits": ([8, 0, 1, "fp8", "bfloat16", False, [1 << 61, 1 << 61, 32]], "buffer 0 has 64 bytes"),
    "one buffer for both": ([8, 0, 0, "fp8", "bfloat16", False, [2, 32]], "given to two"),
    "a buffer that is not there": ([8, 0, 2, "fp8", "bfloat16", False, [2, 32]], "no buffer 2"),
    "too short": ([8, 0, 1, "fp8", "bfloat16", False], "manifest"),
    "too long": ([8, 0, 1, "fp8", "bfloat16", False, [2, 32], 1], "manifest"),
}


def read(value: list[Any], front: list[int]) -> dict[str, Any]:
    block = _engine.make_block(sum((size + 63) // 64 * 64 for size in front))
    memoryview(block)[:] = bytes(len(block))
    return _tensors.decode(msgspec.msgpack.encode([front, [1, "x", value]]), block)


def test_a_packed_tensor_by_hand_is_read() -> None:
    got = read(GOOD, [64, 8])["x"]
    assert (got.dtype, got.shape) == (torch.bfloat16, (2, 32))


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_packed_tensor_is_refused(case: str) -> None:
    value, reason = WRONG[case]
    with pytest.raises(MalformedError, match=reason):
        read(value, [64, 8])


def test_what_tensors_unpack_to_is_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: int) -> None:
        raise AssertionError("allocated")

    front = [64, 8, 64, 8]
    manifest = msgspec.msgpack.encode([front, [1, "x", GOOD, "y", [8, 2, 3, *GOOD[3:]]]])
    block = _engine.make_block(4 * 64)
    memoryview(block)[:] = bytes(len(block))
    assert len(_tensors.decode(manifest, block, limit_bytes=256)) == 2
    with pytest.raises(MalformedError, match="make 256 bytes, the limit is 255"):
        _tensors.decode(manifest, block, limit_bytes=255)
    monkeypatch.setattr(_engine, "make_block", none)
    with pytest.raises(MalformedError, match="make 128 bytes, the limit is 127"):
        _tensors.decode(manifest, block, limit_bytes=127)


def test_a_machine_without_memory_is_no_malformed_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised in (
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ):
        monkeypatch.setattr(_packing, "unpack", Mock(side_effect=raised))
        with pytest.raises(ResourceError, match="receive: ") as caught:
            read(GOOD, [64, 8])
        assert isinstance(caught.value, DeviceError) == ("illegal" in str(raised))
    monkeypatch.setattr(_packing, "unpack", Mock(side_effect=RuntimeError("shape is invalid")))
    with pytest.raises(MalformedError, match="shape is invalid"):
        read(GOOD, [64, 8])


# ---- on a GPU --------------------------------------------------------------------------------------------


def test_why_kernels_cannot_be_used_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_packing, "_why_not", "")
    tries = []

    def work() -> int:
        tries.append(1)
        raise DeviceError("load: kernels on device 0: no binary for this GPU")

    with caplog.at_level(logging.WARNING, logger="zmqpp"):
        assert _packing._if_there_are_kernels(work) is None
        assert _packing._if_there_are_kernels(work) is None
    assert len(tries) == 1 and len(caplog.records) == 1
    assert "packed and unpacked on the CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_a_gpu_packs_as_the_cpu_does(number: str, form: str) -> None:
    assert _engine.why_no_kernels() == ""
    torch.manual_seed(5)
    for shape in ((3, 1), (5, 127), (7, 192), (64, 4096), (3, 300)):
        x = torch.randn(*shape).to(PACKED_NUMBERS[number])
        x[0, 0] = math.nan
        here, there = _packing.pack(x, form), _packing._pack_there(x.cuda(), form)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))
        back = _packing.unpack(*here, number, form, shape, None)
        assert_same_bits(_packing.unpack(*here, number, form, shape, torch.device("cuda")).cpu(), back)
    assert _packing._why_not == ""
