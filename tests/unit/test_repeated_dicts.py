"""Dicts that look like earlier ones take a short cut: what it may take, and what it must leave alone."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import msgspec
import pytest
import torch

from tests.links import assert_same
from zmqpp import _engine, _tensors
from zmqpp._tensors import WIRE_DTYPES, decode, encode
from zmqpp.errors import MalformedError, UnsupportedError


@pytest.fixture(autouse=True, params=["engine", "python"])
def _nothing_is_remembered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way to look at a dict's tensors."""
    if request.param == "python":
        monkeypatch.setattr(_tensors, "_describe", _tensors._describe_plain)
    elif _tensors._describe is _tensors._describe_plain:
        pytest.skip("this torch has no C interface for DLPack")
    _tensors._written.clear()
    _tensors._read.clear()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the writer and the reader had to look into a dict."""
    counts = {"written": 0, "read": 0}
    write, read = _tensors._manifest_writer.encode, _tensors._manifest_reader.decode

    def counted_write(*args: Any) -> Any:
        counts["written"] += 1
        return write(*args)

    def counted_read(*args: Any, **options: Any) -> Any:
        counts["read"] += 1
        return read(*args, **options)

    monkeypatch.setattr(_tensors._manifest_writer, "encode", counted_write)
    monkeypatch.setattr(_tensors._manifest_reader, "decode", counted_read)
    return counts


def payload_of(encoded: _tensors.Encoded) -> _engine.Block:
    block = _engine.make_block(sum((size + 63) // 64 * 64 for _, size in encoded.spans))
    view, offset = memoryview(block), 0
    for address, size in encoded.spans:
        view[offset : offset + size] = ctypes.string_at(address, size)
        offset += (size + 63) // 64 * 64
    return block


def step(value: float = 1.0, rows: int = 4) -> dict[str, Any]:
    return {
        "hidden_states": torch.full((rows, 8), value, dtype=torch.bfloat16),
        "residual": torch.full((rows, 8), -value, dtype=torch.bfloat16),
    }


def test_repeated_dict_is_written_once_and_read_twice(looked: dict[str, int]) -> None:
    for i in range(10):
        sent = step(i)
        encoded = encode(sent)
        assert_same(decode(encoded.manifest, payload_of(encoded)), sent)
    assert looked == {"written": 1, "read": 2}


def test_every_dtype_arrives_with_the_same_bits_each_time(looked: dict[str, int]) -> None:
    for name, dtype in WIRE_DTYPES.items():
        raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
        sent = {name: (raw % 2 if name == "bool" else raw).view(dtype).view(2, 3)}
        for _ in range(5):
            encoded = encode(sent)
            assert_same(decode(encoded.manifest, payload_of(encoded)), sent)
    slow_to_read = [name for name in WIRE_DTYPES if name not in _tensors._DLPACK_TYPES]
    assert looked["read"] == 2 * len(_tensors._DLPACK_TYPES) + 5 * len(slow_to_read)
    unknown = ("complex",) if _tensors._describe is _tensors._describe_plain else ("complex", "bits")
    slow_to_write = [name for name in WIRE_DTYPES if name.startswith(unknown)]
    assert looked["written"] == len(WIRE_DTYPES) + 4 * len(slow_to_write)


def subclass(plain: torch.Tensor) -> torch.Tensor:
    class Other(torch.Tensor):
        pass

    return plain.as_subclass(Other)


def quantised(plain: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)


REFUSED = {
    "subclass": subclass,
    "sparse": torch.Tensor.to_sparse,
    "compressed": torch.Tensor.to_sparse_csr,
    "meta": lambda plain: plain.to("meta"),
    "quantised": quantised,
    "nested": lambda plain: torch.nested.nested_tensor([plain[0], plain[1]]),
    "mkldnn": torch.Tensor.to_mkldnn,
    "never written": lambda plain: torch._efficientzerotensor(plain.shape),
    "functional": torch._to_functional_tensor,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_where_its_like_was_remembered(name: str) -> None:
    plain = torch.ones(2, 2)
    for _ in range(2):
        encode({"the_key": plain})
    with pytest.raises(UnsupportedError, match="the_key"):
        encode({"the_key": REFUSED[name](plain)})


def test_tensors_inside_a_transform_are_refused_where_their_like_was_remembered() -> None:
    encode({"the_key": torch.ones(3)})

    def send(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UnsupportedError, match="the_key"):
            encode({"the_key": x})
        return x

    torch.vmap(send)(torch.ones(2, 3))
    torch.func.grad(lambda x: send(x).sum())(torch.ones(3))


def test_keys_and_dicts_of_other_types_are_refused_where_their_like_was_remembered() -> None:
    class Text(str):
        pass

    class Dict(dict):
        pass

    encode({"x": torch.ones(3)})
    with pytest.raises(UnsupportedError, match="keys"):
        encode({Text("x"): torch.ones(3)})
    with pytest.raises(UnsupportedError, match="must be a dict"):
        encode(Dict(x=torch.ones(3)))


COPIED = {
    "transposed": lambda plain: plain.t(),
    "strided": lambda plain: plain.repeat(1, 2)[:, ::2],
    "expanded": lambda plain: plain[:1].expand(2, 2),
    "conjugate": lambda plain: plain.conj(),
    "negated": lambda plain: plain.imag if plain.is_conj() else torch._neg_view(plain),
    "parameter": torch.nn.Parameter,
    "needs a gradient": lambda plain: plain.clone().requires_grad_(),
    "of a graph": lambda plain: plain.clone().requires_grad_() * 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("name", COPIED)
def test_what_needs_care_gets_it_where_its_like_was_remembered(name: str, dtype: torch.dtype) -> None:
    plain = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    if dtype.is_complex:
        plain = plain * (1 + 1j)
    for values in (plain, plain, COPIED[name](plain), plain):
        encoded = encode({"x": values})
        assert_same(decode(encoded.manifest, payload_of(encoded)), {"x": values})


def test_tensor_that_changed_in_place_is_looked_at_again() -> None:
    tensor = torch.ones(2, 6)
    for change in (lambda: None, lambda: tensor.t_(), lambda: tensor.resize_(3, 3), lambda: tensor.set_()):
        change()
        for _ in range(2):
            encoded = encode({"x": tensor})
            assert_same(decode(encoded.manifest, payload_of(encoded) if len(tensor) else None), {"x": tensor})


def test_memory_of_both_sides_is_bounded() -> None:
    for rows in range(1, 1000):
        encoded = encode({"x": torch.empty(rows, dtype=torch.uint8)})
        for _ in range(2):
            decode(encoded.manifest, payload_of(encoded))
    long = {f"{'k' * 1000}{i}": torch.ones(1) for i in range(17)}
    for _ in range(3):
        encoded = encode(long)
        assert_same(decode(encoded.manifest, payload_of(encoded)), long)
    for known in (_tensors._written, _tensors._read):
        assert 0 < len(known) <= 256
    assert encoded.manifest not in _tensors._read


@pytest.mark.parametrize("size", [64, 192, 0])
def test_payload_of_another_size_is_refused_where_its_manifest_was_remembered(size: int) -> None:
    manifest = msgspec.msgpack.encode([[64, 64], [1, "x", [2, 1, "float32", False, [16]]]])
    for _ in range(3):
        decode(manifest, _engine.make_block(128))
    with pytest.raises(MalformedError, match=f"make 128 bytes, the payload has {size}"):
        decode(manifest, _engine.make_block(size) if size else None)


@pytest.mark.parametrize(
    "root",
    [
        [1, "x", [2, 0, "float32", False, [17]]],
        [1, "x", [2, 1, "float32", False, [16]]],
        [1, "x", [2, -1, "float32", False, [16]]],
        [1, "x", [2, 0, "float32", False, [16]], "x", [2, 0, "float32", False, [16]]],
        [1, 7, [2, 0, "float32", False, [16]]],
        [1, "x", [2, 0, "os.system", False, [16]]],
    ],
)
def test_lies_are_never_remembered(root: Any) -> None:
    manifest = msgspec.msgpack.encode([[64], root])
    for _ in range(3):
        with pytest.raises(MalformedError):
            decode(manifest, _engine.make_block(64))
    assert not _tensors._read


def test_tensors_of_a_device_go_to_the_links_device_each_time() -> None:
    manifest = msgspec.msgpack.encode([[64], [1, "x", [2, 0, "float32", True, [16]]]])
    for device in (None, None, None, torch.device("meta"), None):
        got = decode(manifest, _engine.make_block(64), device)["x"]
        assert got.device.type == ("cpu" if device is None else "meta")


def test_received_tensors_are_writable_and_keep_their_memory_until_the_last_of_them_dies() -> None:
    large = {"x": torch.ones(1 << 17), "y": torch.zeros(1 << 17)}
    encoded = encode(large)
    for _ in range(3):
        _engine.drop_cached_receive_blocks()
        got = decode(encoded.manifest, payload_of(encoded))
        got["x"] += 1
        view = got.pop("x")[100:]
        got.clear()
        gc.collect()
        assert _engine.cached_receive_bytes() == 0 and bool((view == 2).all())
        holder = [view]
        del view
        thread = threading.Thread(target=holder.clear)
        thread.start()
        thread.join()
        assert _engine.cached_receive_bytes() > 0
    _engine.drop_cached_receive_blocks()


def test_many_threads_may_encode_and_decode_at_once() -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(300):
                sent = step(seed, rows=1 + (i * seed) % 50)
                encoded = encode(sent)
                assert_same(decode(encoded.manifest, payload_of(encoded)), sent)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
