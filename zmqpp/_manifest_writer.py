"""Any dict of values -> its manifest (msgpack) and its buffers.

Prose: docs/wire_format.md, section "Manifest". Values are exactly None, bool, int, float, str, bytes, list,
dict, torch.Tensor, torch.nn.Parameter and numpy.ndarray; anything else is refused by name.

What is in a buffer (tensors, arrays, bytes and str of more than 64 KiB) is limited by `max_dict_bytes` only. All
the rest, lists and dicts with their plain values above all, is the manifest, of 16 MiB at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from zmqpp import _packing
from zmqpp._arrival import is_reached
from zmqpp._manifest import (
    ARRAY,
    BIG_INT,
    DICT,
    LARGE_BYTES,
    LARGE_STR,
    LIST,
    MAX_BYTES,
    MAX_DEPTH,
    PACKED,
    TENSOR,
    WILD_STR,
    WIRE_NAMES,
)
from zmqpp._numpy_types import describe_dtype
from zmqpp.errors import ConfigError, UnsupportedError

__all__ = ["Encoded", "encode"]

_LARGE = 64 << 10
"""Bytes and text beyond this many bytes travel as buffers, as tensors do."""
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

_encoder = msgspec.msgpack.Encoder()


@dataclass(slots=True)
class Encoded:
    """A manifest and the buffers it counts; `owners` keep the buffers' memory alive."""

    manifest: bytes = b""
    spans: list[Any] = field(default_factory=list)
    """(address, size in bytes), on a device with its number behind."""
    owners: list[Any] = field(default_factory=list)
    compression: str = "none"
    unpacked_bytes: int = 0
    """What packed tensors make again at the receiver."""

    def is_on_device(self) -> bool:
        """Whether some of the buffers are."""
        return any(len(span) == 3 for span in self.spans)


def encode(values: dict[str, Any], compression: str = "none") -> Encoded:
    """Describe `values`; tensors and arrays that lie contiguous in the memory of the CPU or of a CUDA device are
    referred to, not copied.

    Args:
        compression: "fp8" or "int8": large tensors of floats are packed, see `_packing`, anything else as ever.
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
    out = Encoded(compression=compression)
    root = _encode_dict(values, "", 0, out)
    out.manifest = _encoder.encode([[span[1] for span in out.spans], root])
    if len(out.manifest) > MAX_BYTES:
        raise _too_large(len(out.manifest), list(values), root)
    return out


def _encode(value: Any, path: str, depth: int, out: Encoded) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is bytes:
        return value if len(value) <= _LARGE else _encode_large(LARGE_BYTES, value, out)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return _encode_tensor(value, path, out)
    if kind is int:
        return _encode_int(value)
    if kind is str:
        return _encode_str(value, out)
    if kind is list:
        _check_depth(depth, path)
        return [LIST, *(_encode(item, f"{path}[{i}]", depth + 1, out) for i, item in enumerate(value))]
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
    items: list[Any] = [DICT]
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
    return [BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]


def _encode_str(value: str, out: Encoded) -> Any:
    if len(value) > _LARGE // 4:  # at most four bytes a character
        encoded = value.encode("utf-8", "surrogatepass")
        if len(encoded) > _LARGE:
            return _encode_large(LARGE_STR, encoded, out)
    return _encode_text(value)


def _encode_text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, as in file names
        return [WILD_STR, value.encode("utf-8", "surrogatepass")]
    return value


def _encode_large(kind: int, value: bytes, out: Encoded) -> list[Any]:
    _add_buffer(out, np.frombuffer(value, np.uint8).__array_interface__["data"][0], len(value), value)
    return [kind, len(out.spans) - 1]


def _encode_tensor(tensor: torch.Tensor, path: str, out: Encoded) -> list[Any]:
    name = _check_tensor(tensor, path)
    on_device = not tensor.is_cpu
    plain = tensor.detach().resolve_conj().resolve_neg()
    if out.compression != "none" and _packing.pays(plain):
        out.unpacked_bytes += plain.nbytes
        return [PACKED, *_add_packed(plain, path, out), out.compression, name, on_device, list(plain.shape)]
    plain = _within_reach(plain).contiguous()
    size = plain.numel() * plain.element_size()
    if size and not plain.data_ptr():  # zeros that forward-mode differentiation never wrote, wrappers
        raise _without_memory(tensor, path)
    _add_buffer(out, plain.data_ptr(), size, plain, plain.get_device())
    return [TENSOR, len(out.spans) - 1, name, on_device, list(plain.shape)]


def _add_packed(tensor: torch.Tensor, path: str, out: Encoded) -> tuple[int, int]:
    """The numbers of the two buffers: its bytes, its scales."""
    try:
        parts = _packing.pack(tensor, out.compression)
    except UnsupportedError:
        raise _without_memory(tensor, path) from None
    for part in parts:
        part = _within_reach(part)
        _add_buffer(out, part.data_ptr(), part.nbytes, part, part.get_device())
    return len(out.spans) - 2, len(out.spans) - 1


def _within_reach(tensor: torch.Tensor) -> torch.Tensor:
    """Where the engine can read it: where it is, or in CPU memory."""
    return tensor if tensor.is_cuda and is_reached() else tensor.cpu()


def _without_memory(tensor: torch.Tensor, path: str) -> UnsupportedError:
    return UnsupportedError(f"{path}: this {_name(tensor)} cannot be sent: it has no memory")


def _check_tensor(tensor: torch.Tensor, path: str) -> str:
    """The wire name of its dtype, if it is a dense tensor with values."""
    try:
        name = WIRE_NAMES.get(tensor.dtype)
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
    return [ARRAY, len(out.spans) - 1, described, list(plain.shape)]


def _add_buffer(out: Encoded, address: int, size: int, owner: Any, device: int = -1) -> None:
    out.spans.append((address, size) if device < 0 else (address, size, device))
    out.owners.append(owner)


def _check_depth(depth: int, path: str) -> None:
    if depth >= MAX_DEPTH:
        raise ConfigError(f"{path[:80]}…: nested deeper than {MAX_DEPTH} levels, or within itself")


def _too_large(size: int, keys: list[str], root: list[Any]) -> ConfigError:
    sizes = [len(_encoder.encode(item)) for item in root[2::2]]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    return ConfigError(
        f"{_shown(keys[largest])}: {sizes[largest]} bytes of lists, dicts and plain values, "
        f"in all {size} where the limit of a tensor dict is {MAX_BYTES}; send long lists as a tensor "
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
