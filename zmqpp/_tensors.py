"""A dict of values <-> a manifest (msgpack) and buffers: what a tensor dict looks like on the wire.

Prose: docs/wire_format.md, section "Manifest". Values are exactly None, bool, int, float, str, bytes, list,
dict, torch.Tensor, torch.nn.Parameter and numpy.ndarray; anything else is refused by name. Nothing is ever
executed or imported because of what was received.

What is in a buffer (tensors, arrays, bytes and str of more than 64 KiB) is limited by `max_dict_bytes` only. All
the rest, lists and dicts with their plain values above all, is the manifest, of 16 MiB at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from zmqpp import _engine
from zmqpp._numpy_types import describe_dtype, parse_dtype
from zmqpp.errors import ConfigError, MalformedError, UnsupportedError

__all__ = ["WIRE_DTYPES", "Encoded", "decode", "encode"]

MAX_DEPTH = 64
"""Levels of lists and dicts inside one another."""

# First element of an array in the manifest: what kind of value the rest describes.
_LIST, _DICT, _TENSOR, _ARRAY, _BIG_INT, _WILD_STR, _LARGE_BYTES, _LARGE_STR = range(8)

_LARGE = 64 << 10
"""Bytes and text beyond this many bytes travel as buffers, as tensors do."""
_MAX_MANIFEST = _engine.MAX_MANIFEST_BYTES

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_ALIGN = _engine.ALIGN

_DTYPE_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("bits8", "bits16"),
)
WIRE_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)
}
"""Every torch dtype but these, by its wire name: quantised ones, whose scale and zero point are not in the elements
(qint8, qint32, quint8, quint4x2, quint2x4), and those that pack or take less than a byte per element (int1 to int7,
uint1 to uint7, bits1x8, bits2x4, bits4x2, float4_e2m1fn_x2)."""
_WIRE_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


@dataclass
class Encoded:
    """A manifest and the buffers it counts; `owners` keep the buffers' memory alive."""

    manifest: bytes = b""
    spans: list[tuple[int, int]] = field(default_factory=list)  # address, size in bytes
    owners: list[Any] = field(default_factory=list)


def encode(values: dict[str, Any]) -> Encoded:
    """Describe `values`; tensors and arrays that lie contiguous in CPU memory are referred to, not copied.

    Raises:
        UnsupportedError (a TypeError): a value of another type; the text names its key.
        ConfigError (a ValueError): nested deeper than 64, or within itself; or everything that is not in buffers
            makes more than 16 MiB (the text names the largest key): long lists belong into a tensor or array.
    """
    if type(values) is not dict:
        raise UnsupportedError(f"a tensor dict must be a dict, not {_name(values)}")
    for key in values:
        if type(key) is not str:
            raise UnsupportedError(f"keys of a tensor dict must be str, not {_name(key)}: {_shown(key)}")
    out = Encoded()
    root = _encode_dict(values, "", 0, out)
    out.manifest = _encoder.encode([[size for _, size in out.spans], root])
    if len(out.manifest) > _MAX_MANIFEST:
        raise _too_large(len(out.manifest), list(values), root)
    return out


def decode(manifest: bytes, block: Any, device: torch.device | None = None) -> dict[str, Any]:
    """Rebuild the dict. Tensors and arrays are views of `block` (buffer protocol, or None without payload).

    Args:
        manifest: checked for well-formed msgpack by the engine, and for everything else here.
        device: where tensors go that were not in CPU memory at the sender; None = they stay in CPU memory.
    Raises:
        MalformedError: the bytes are not what `encode` writes.
    """
    try:
        sizes, root = _decoder.decode(manifest)
        reader = _Reader(sizes, block, device)
        values = reader.value(root, 0)
    except MalformedError:
        raise
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        KeyError,
        IndexError,
        msgspec.MsgspecError,
    ) as error:
        raise MalformedError(f"manifest: {type(error).__name__}: {error}", op="decode") from error
    if type(values) is not dict or any(type(key) is not str for key in values):
        raise MalformedError("manifest: its root is not a dict with str keys", op="decode")
    return values


# ---- encoding --------------------------------------------------------------------------------------------


def _encode(value: Any, path: str, depth: int, out: Encoded) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is bytes:
        return value if len(value) <= _LARGE else _encode_large(_LARGE_BYTES, value, out)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return _encode_tensor(value, path, out)
    if kind is int:
        return _encode_int(value)
    if kind is str:
        return _encode_str(value, out)
    if kind is list:
        _check_depth(depth, path)
        return [_LIST, *(_encode(item, f"{path}[{i}]", depth + 1, out) for i, item in enumerate(value))]
    if kind is dict:
        _check_depth(depth, path)
        return _encode_dict(value, path, depth, out)
    if kind is np.ndarray:
        return _encode_array(value, path, out)
    raise UnsupportedError(
        f"{path or 'value'}: {_name(value)} cannot be sent; allowed are tensors, numpy arrays, "
        "None, bool, int, float, str, bytes, list and dict"
    )


def _encode_dict(values: dict[Any, Any], path: str, depth: int, out: Encoded) -> list[Any]:
    items: list[Any] = [_DICT]
    for key, value in values.items():
        if key is not None and type(key) not in (str, int, bytes, bool, float):
            raise UnsupportedError(f"{path}: a dict key of type {_name(key)} cannot be sent")
        items.append(_encode_key(key))
        items.append(_encode(value, f"{path}[{_shown(key)}]" if path else _shown(key), depth + 1, out))
    return items


def _encode_key(key: Any) -> Any:
    if type(key) is int:
        return _encode_int(key)
    return _encode_text(key) if type(key) is str else key


def _encode_int(value: int) -> Any:
    if _INT_MIN <= value <= _INT_MAX:
        return value
    return [_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def _encode_str(value: str, out: Encoded) -> Any:
    if len(value) > _LARGE // 4:  # at most four bytes a character
        encoded = value.encode("utf-8", "surrogatepass")
        if len(encoded) > _LARGE:
            return _encode_large(_LARGE_STR, encoded, out)
    return _encode_text(value)


def _encode_text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, as in file names
        return [_WILD_STR, value.encode("utf-8", "surrogatepass")]
    return value


def _encode_large(kind: int, value: bytes, out: Encoded) -> list[Any]:
    _add_buffer(out, np.frombuffer(value, np.uint8).__array_interface__["data"][0], len(value), value)
    return [kind, len(out.spans) - 1]


def _encode_tensor(tensor: torch.Tensor, path: str, out: Encoded) -> list[Any]:
    name = _check_tensor(tensor, path)
    on_device = not tensor.is_cpu
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    _add_buffer(out, plain.data_ptr(), plain.numel() * plain.element_size(), plain)
    return [_TENSOR, len(out.spans) - 1, name, on_device, list(plain.shape)]


def _check_tensor(tensor: torch.Tensor, path: str) -> str:
    """The wire name of its dtype, if it is a dense tensor with values."""
    try:
        name = _WIRE_NAMES.get(tensor.dtype)
        if name is None or tensor.is_quantized:
            raise UnsupportedError(f"{path}: tensors of dtype {tensor.dtype} cannot be sent; see WIRE_DTYPES")
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
            what = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            what = "that are nested" if tensor.is_nested else what
            raise UnsupportedError(
                f"{path}: tensors {what} cannot be sent; make it a dense tensor with values"
            )
        tensor.data_ptr()  # inside vmap and the like, what looks like a tensor has no memory
    except UnsupportedError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(f"{path}: this {_name(tensor)} cannot be sent: {reason[:200]}") from error
    return name


def _encode_array(array: np.ndarray[Any, Any], path: str, out: Encoded) -> list[Any]:
    described = describe_dtype(array.dtype, path)
    plain = array if array.flags.c_contiguous else np.array(array, order="C")
    _add_buffer(out, plain.__array_interface__["data"][0], plain.nbytes, plain)
    return [_ARRAY, len(out.spans) - 1, described, list(plain.shape)]


def _add_buffer(out: Encoded, address: int, size: int, owner: Any) -> None:
    out.spans.append((address, size))
    out.owners.append(owner)


def _check_depth(depth: int, path: str) -> None:
    if depth >= MAX_DEPTH:
        raise ConfigError(f"{path[:80]}…: nested deeper than {MAX_DEPTH} levels, or within itself")


def _too_large(size: int, keys: list[str], root: list[Any]) -> ConfigError:
    sizes = [len(_encoder.encode(item)) for item in root[2::2]]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    return ConfigError(
        f"{_shown(keys[largest])}: {sizes[largest]} bytes of lists, dicts and plain values, "
        f"in all {size} where the limit of a tensor dict is {_MAX_MANIFEST}; send long lists as a tensor "
        "or numpy array, or as several dicts"
    )


def _shown(key: Any) -> str:
    """`key` as the texts of errors show it."""
    if type(key) is int and key.bit_length() > _SHOWN_BITS:  # Python refuses to write the longest ones out
        return f"int of {key.bit_length()} bits"
    text = repr(key)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


_SHOWN_BITS, _SHOWN_CHARACTERS = 256, 80


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ---- decoding --------------------------------------------------------------------------------------------


class _Reader:
    """Turns the decoded msgpack tree into values; trusts none of it."""

    def __init__(self, sizes: Any, block: Any, device: torch.device | None) -> None:
        self._block = block
        self._device = device
        self._places: list[tuple[int, int]] = []  # offset, size of each buffer
        end = 0
        for size in _list_of_sizes(sizes, "buffer size"):
            self._places.append((end, size))
            end += (size + _ALIGN - 1) // _ALIGN * _ALIGN
        have = 0 if block is None else len(block)
        if end != have:
            raise MalformedError(
                f"manifest: its buffers make {end} bytes, the payload has {have}", op="decode"
            )

    def value(self, item: Any, depth: int) -> Any:
        if type(item) is not list:
            return item
        if depth > MAX_DEPTH or not item:
            raise MalformedError("manifest: an empty array, or nested too deeply", op="decode")
        tag, rest = item[0], item[1:]
        if type(tag) is not int:
            raise MalformedError(f"manifest: {tag!r} is no kind of value", op="decode")
        if tag == _LIST:
            return [self.value(entry, depth + 1) for entry in rest]
        if tag == _DICT:
            return self._dict(rest, depth)
        if tag == _TENSOR:
            return self._tensor(*rest)
        if tag == _ARRAY:
            return self._array(*rest)
        if tag == _BIG_INT:
            return int.from_bytes(_bytes(rest), "little", signed=True)
        if tag == _WILD_STR:
            return _bytes(rest).decode("utf-8", "surrogatepass")
        if tag == _LARGE_BYTES:
            return self._large(*rest)
        if tag == _LARGE_STR:
            return self._large(*rest).decode("utf-8", "surrogatepass")
        raise MalformedError(f"manifest: unknown kind of value {tag}", op="decode")

    def _dict(self, rest: list[Any], depth: int) -> dict[Any, Any]:
        if len(rest) % 2:
            raise MalformedError("manifest: a key without a value", op="decode")
        keys = [self._key(key) for key in rest[::2]]
        values = {key: self.value(item, depth + 1) for key, item in zip(keys, rest[1::2], strict=True)}
        if len(values) != len(keys):
            raise MalformedError("manifest: a key appears twice", op="decode")
        return values

    def _key(self, item: Any) -> Any:
        if type(item) is list and (not item or item[0] not in (_BIG_INT, _WILD_STR)):
            raise MalformedError("manifest: a key must be a plain value", op="decode")
        return self.value(item, 0)

    def _large(self, index: Any) -> bytes:
        offset, size = self._place(index)
        return bytes(memoryview(self._block)[offset : offset + size]) if size else b""

    def _place(self, index: Any, size: int | None = None) -> tuple[int, int]:
        if type(index) is not int or not 0 <= index < len(self._places):
            raise MalformedError(f"manifest: there is no buffer {index!r}", op="decode")
        offset, have = self._places[index]
        if size is None:
            size = have
        if have != size:
            raise MalformedError(
                f"manifest: buffer {index} has {have} bytes, its shape makes {size}", op="decode"
            )
        return offset, size

    def _tensor(self, index: Any, name: Any, on_device: Any, shape: Any) -> torch.Tensor:
        dtype = WIRE_DTYPES.get(name) if type(name) is str else None
        if dtype is None or type(on_device) is not bool:
            raise MalformedError(f"manifest: unknown tensor dtype {name!r}", op="decode")
        dims = _list_of_sizes(shape, "dimension")
        count = math.prod(dims)
        offset, size = self._place(index, count * dtype.itemsize)
        if size == 0:
            tensor = torch.empty(dims, dtype=dtype)
        else:
            tensor = torch.frombuffer(self._block, dtype=dtype, count=count, offset=offset).view(dims)
        return tensor.to(self._device) if on_device and self._device is not None else tensor

    def _array(self, index: Any, described: Any, shape: Any) -> np.ndarray[Any, Any]:
        dtype = parse_dtype(described)
        dims = _list_of_sizes(shape, "dimension")
        if len(dims) > _NUMPY_MAX_DIMS:
            raise MalformedError(f"manifest: an array of {len(dims)} dimensions", op="decode")
        offset, size = self._place(index, math.prod(dims) * dtype.itemsize)
        if size == 0:
            return np.empty(dims, dtype=dtype)
        return np.ndarray(dims, dtype=dtype, buffer=self._block, offset=offset)


_NUMPY_MAX_DIMS = 64


def _list_of_sizes(value: Any, what: str) -> list[int]:
    if type(value) is not list:
        raise MalformedError(f"manifest: {what}s must be a list", op="decode")
    for entry in value:
        if type(entry) is not int or not 0 <= entry < 1 << 62:
            raise MalformedError(f"manifest: {entry!r} is no {what}", op="decode")
    return value


def _bytes(rest: list[Any]) -> bytes:
    if len(rest) != 1 or type(rest[0]) is not bytes:
        raise MalformedError("manifest: bytes expected", op="decode")
    return rest[0]
