"""vLLM's own objects as msgpack, without pickle: a whitelist of plain-data types, all else refused by name.

Every compound that msgpack has no word for is one extension value `[name, ...content]`:

    tuple, set, frozenset, slice, Fraction, int beyond 64 bits, torch.Tensor, torch.dtype, numpy array    by names below
    dataclass, NamedTuple, msgspec.Struct, Enum, UserDict                                       by "module:Class"

Only classes of `compat.WIRE_MODULES` and `WIRE_CLASSES` can be named. Objects are rebuilt field by field without
running their `__init__` or `__post_init__`: nothing that arrives can execute, and fields that vLLM computes
in `__post_init__` arrive as they were (but for classes that msgspec alone makes: LoRARequest, PoolingParams; their
constructors only look at values). Fields equal to their default are left out, so a peer whose vLLM has
one field more still understands.
"""

from __future__ import annotations

import enum
from collections import UserDict
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import torch

from zmqpp._manifest import fills
from zmqpp._numpy_types import parse_dtype
from zmqpp._shown import one_line, shown
from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm import compat
from zmqpp.vllm.wire_fields import MISSING, fields_of
from zmqpp.vllm.wire_objects import build, build_fraction, build_mapping, build_named_tuple, build_slice

_OBJECT = 1
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})
_INT64_MIN, _UINT64_MAX = -(1 << 63), (1 << 64) - 1
# Found once: to ask torch for a foreign name would let it import whatever it loads lazily.
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


def encode(value: Any) -> bytes:
    """`value` as msgpack.

    Raises:
        UnsupportedError: a type that is not on the whitelist, named with where it stands.
    """
    try:
        return _encoder.encode(_pack(value))
    except _Unsendable as error:
        place = "value" + "".join(reversed(error.path))
        raise UnsupportedError(f"{place} is a {error}, which zmqpp does not send between stages") from None


def decode(body: bytes) -> Any:
    """The value that `encode` wrote.

    Raises:
        MalformedError: not written by `encode`, or a type that is not on the whitelist, named.
    """
    try:
        return _decoder.decode(body)
    except MalformedError:
        raise
    except Exception as error:
        raise MalformedError(
            f"payload of {len(body)} bytes cannot be read: {type(error).__name__}: {one_line(error)}"
        ) from error


def decode_arguments(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, and those by name.

    Raises:
        MalformedError: as `decode`, or they are none.
    """
    given = decode(body)
    if type(given) is not tuple or [type(part) for part in given] != [tuple, dict]:
        raise MalformedError(f"payload of {len(body)} bytes holds no arguments of a call")
    args, kwargs = given
    if not all(type(name) is str for name in kwargs):
        raise MalformedError(f"payload of {len(body)} bytes holds an argument without a name")
    return args, kwargs


# ---- writing ---------------------------------------------------------------------------------------------


class _Unsendable(Exception):
    """On its way out to `encode` it gathers, innermost first, where the value stands: found only when it is needed."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []


def _pack(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        if kind is int and not _INT64_MIN <= value <= _UINT64_MAX:
            return _ext("int", [str(value)])
        return value
    if kind is list:
        return _pack_items(value)
    if kind is dict:
        return _pack_mapping(value)
    writer = _writers.get(kind)
    if writer is None:
        writer = _writers[kind] = _writer_for(kind)
    return writer(value)


def _pack_items(items: Any) -> list[Any]:
    rows = set(map(type, items)) == {list}
    if _need_nothing(list(chain.from_iterable(items)) if rows else items):
        return items if type(items) is list else list(items)
    packed: list[Any] = []
    try:
        for item in items:
            packed.append(_pack(item))
    except _Unsendable as error:
        error.path.append(f"[{len(packed)}]")
        raise
    return packed


def _need_nothing(items: Collection[Any]) -> bool:
    """Whether msgpack has words for all `items`. Looks at long lists of tokens in C."""
    kinds = set(map(type, items))
    if not kinds <= _PLAIN:
        return False
    if int not in kinds:
        return True
    numbers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
    return min(numbers) >= _INT64_MIN and max(numbers) <= _UINT64_MAX


def _pack_mapping(mapping: dict[Any, Any]) -> Any:
    if set(map(type, mapping)) <= {str}:
        if _need_nothing(mapping.values()):
            return mapping
        return {key: _pack_value(key, value) for key, value in mapping.items()}
    pairs: list[Any] = []
    for key, value in mapping.items():
        pairs += [_pack_value(key, key), _pack_value(key, value)]
    return _ext("dict", pairs)


def _pack_value(key: Any, value: Any) -> Any:
    try:
        return _pack(value)
    except _Unsendable as error:
        error.path.append(" key" if value is key else f"[{key!r}]")
        raise


def _ext(name: str, content: list[Any]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_OBJECT, _encoder.encode([name, *content]))


def _writer_for(kind: type) -> Callable[[Any], Any]:
    """How objects of `kind` are written; found once per type."""
    if issubclass(kind, torch.Tensor):
        return _pack_tensor
    if issubclass(kind, np.ndarray):
        return _pack_array
    if issubclass(kind, np.generic):
        return lambda value: _pack(value.item())
    name = compat.wire_name(kind)
    if name is None:
        raise _Unsendable(f"{kind.__module__}.{kind.__qualname__}")
    if issubclass(kind, enum.Enum):
        return lambda value: _ext(name, [_pack(value.value)])
    if issubclass(kind, tuple):
        return lambda value: _ext(name, _pack_items(value))
    if issubclass(kind, UserDict):
        return lambda value: _ext(name, [_pack_mapping(value.data)])
    fields = fields_of(kind)
    return lambda value: _ext(name, [_pack_fields(value, fields)])


def _pack_fields(value: Any, fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    packed = {}
    for field, default in fields:
        content = getattr(value, field, MISSING)
        if content is default or content is MISSING or _same_plain(content, default):
            continue
        try:
            packed[field] = _pack(content)
        except _Unsendable as error:
            error.path.append(f".{field}")
            raise
    return packed


def _same_plain(content: Any, default: Any) -> bool:
    """Equal, and cheap and safe to compare: never a tensor against anything."""
    return type(content) is type(default) and type(content) in _PLAIN and bool(content == default)


def _pack_tensor(value: torch.Tensor) -> Any:
    if value.layout is not torch.strided or value.is_quantized:
        raise _Unsendable(f"{value.layout} tensor")
    flat = value.detach().cpu().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return _ext("tensor", [str(value.dtype).removeprefix("torch."), list(value.shape), content])


def _pack_array(value: np.ndarray) -> Any:
    if value.dtype.hasobject or value.dtype.names is not None:
        raise _Unsendable(f"numpy array of {value.dtype}")
    return _ext("array", [value.dtype.str, list(value.shape), value.tobytes()])


_writers: dict[type, Callable[[Any], Any]] = {
    tuple: lambda value: _ext("tuple", _pack_items(value)),
    set: lambda value: _ext("set", _pack_items(list(value))),
    frozenset: lambda value: _ext("frozenset", _pack_items(list(value))),
    slice: lambda value: _ext("slice", _pack_items([value.start, value.stop, value.step])),
    Fraction: lambda value: _ext("fraction", [value.numerator, value.denominator]),
    torch.Size: lambda value: _ext("tuple", list(value)),
    torch.dtype: lambda value: _ext("dtype", [str(value).removeprefix("torch.")]),
}


# ---- reading ---------------------------------------------------------------------------------------------


def _unpack_ext(code: int, body: memoryview) -> Any:
    if code != _OBJECT:
        raise MalformedError(f"payload holds extension {code}, which no zmqpp writes")
    content = _decoder.decode(body)
    if type(content) is not list or not content or type(content[0]) is not str:
        raise MalformedError("payload holds an extension value without a name")
    name, content = content[0], content[1:]
    reader = _readers.get(name)
    if reader is None:
        reader = _readers[name] = _reader_for(name)
    return reader(content)


def _reader_for(name: str) -> Callable[[list[Any]], Any]:
    kind = compat.wire_class(name)
    if kind is None:
        raise MalformedError(
            f"payload holds a {one_line(name)}, which zmqpp does not accept from another stage"
        )
    if issubclass(kind, enum.Enum):
        return lambda content: kind(content[0])
    if issubclass(kind, tuple):
        return lambda content: build_named_tuple(kind, content)
    if issubclass(kind, UserDict):
        return lambda content: build_mapping(kind, content)
    return lambda content: build(kind, content[0])


def _build_tensor(content: list[Any]) -> torch.Tensor:
    name, shape, body = content
    dtype = _build_dtype([name])
    _check_size(shape, dtype.itemsize, body, f"tensor of {name}")
    if not body:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(dtype).reshape(shape)


def _build_array(content: list[Any]) -> np.ndarray:
    described, shape, body = content
    if type(described) is not str:
        raise MalformedError(f"payload holds a numpy array of {shown(described)}")
    dtype = parse_dtype(described)
    _check_size(shape, dtype.itemsize, body, f"array of {dtype}")
    if not body:
        return np.empty(shape, dtype=dtype)
    return np.frombuffer(bytearray(body), dtype=dtype).reshape(shape)


def _check_size(shape: Any, itemsize: int, body: Any, what: str) -> None:
    if type(body) is not bytes:
        raise MalformedError(f"payload holds a {what} without bytes")
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
        raise MalformedError(f"payload holds a {what} of shape {shown(shape)}")
    if not fills(shape, itemsize, len(body)):
        raise MalformedError(f"payload holds a {what} of shape {shown(shape)} in {len(body)} bytes")


def _build_dtype(content: list[Any]) -> torch.dtype:
    (name,) = content
    dtype = _DTYPES.get(name) if type(name) is str else None
    if dtype is None:
        raise MalformedError(f"payload holds an unknown dtype {shown(name)}")
    return dtype


def _build_int(content: list[Any]) -> int:
    (text,) = content
    if type(text) is not str:
        raise MalformedError(f"payload holds {shown(text)} for a large number")
    return int(text)


_readers: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "slice": build_slice,
    "fraction": build_fraction,
    "int": _build_int,
    "dict": lambda content: dict(zip(content[::2], content[1::2], strict=True)),
    "tensor": _build_tensor,
    "array": _build_array,
    "dtype": _build_dtype,
}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_unpack_ext)
