"""A manifest and its payload -> the dict; nothing in either is trusted, executed or imported.

Prose: docs/wire_format.md, section "Manifest".
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec
import numpy as np
import torch

from zmqpp import _engine, _packing
from zmqpp._arrival import Arrival, is_reached, of_this_machine
from zmqpp._manifest import (
    ALIGN,
    ARRAY,
    BIG_INT,
    DICT,
    LARGE_BYTES,
    LARGE_STR,
    LIST,
    MAX_DEPTH,
    PACKED,
    PACKED_FORMATS,
    PACKED_NUMBERS,
    TENSOR,
    WILD_STR,
    WIRE_DTYPES,
    fills,
)
from zmqpp._numpy_types import parse_dtype
from zmqpp._shown import one_line, shown
from zmqpp.errors import MalformedError

__all__ = ["decode"]

_decoder = msgspec.msgpack.Decoder()
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})


def decode(
    manifest: bytes,
    block: Any,
    device: torch.device | None = None,
    everything: bool = False,
    *,
    arrival: Arrival | None = None,
    limit_bytes: int | None = None,
    only_views: bool = False,
) -> dict[str, Any]:
    """Rebuild the dict. Tensors and arrays are views of `block` (buffer protocol, or None without payload).

    Args:
        manifest: checked for well-formed msgpack by the engine, and for everything else here.
        device: where tensors go that were not in CPU memory at the sender; None = they stay in CPU memory.
        everything: those go there too that were.
        arrival: of `block` on `device`, for CUDA tensors, which the caller makes streams wait for; None = the current
            stream waits for them.
        limit_bytes: what packed tensors may make when they are unpacked, in all; None = any.
        only_views: the values shall not outlive this call's caller: views even of what lies on the sender's device.
    Raises:
        MalformedError: the bytes are not what `encode` writes.
        ResourceError: no memory for it.
    """
    try:
        sizes, root = _decoder.decode(manifest)
        reader = _Reader(sizes, block, device, everything, arrival, limit_bytes, only_views)
        values = reader.value(root, 0)
    except MalformedError:
        raise
    except (
        ValueError,
        TypeError,
        OverflowError,
        RuntimeError,  # torch's, and RecursionError
        KeyError,
        IndexError,
        msgspec.MsgspecError,
        MemoryError,
    ) as error:
        if ours := of_this_machine(error, "a received dict"):
            raise ours from error
        raise MalformedError(f"manifest: {type(error).__name__}: {one_line(error)}", op="decode") from error
    if type(values) is not dict or any(type(key) is not str for key in values):
        raise MalformedError("manifest: its root is not a dict with str keys", op="decode")
    if reader.arrival is not None:
        reader.arrival.start()
        if arrival is None:
            reader.arrival.hold_back()
    return values


class _Reader:
    """Turns the decoded msgpack tree into values; trusts none of it."""

    def __init__(
        self,
        sizes: Any,
        block: Any,
        device: torch.device | None,
        everything: bool,
        arrival: Arrival | None,
        limit_bytes: int | None,
        only_views: bool = False,
    ) -> None:
        self._only_views = only_views
        self._block = block
        self._device = device
        self._everything = everything
        self._is_remote = type(block) is _engine.Block and block.is_remote()
        is_cuda = device is not None and device.type == "cuda" and block is not None and is_reached()
        self.arrival = arrival
        if arrival is None and is_cuda and device is not None:
            self.arrival = Arrival(block, device)
        self._limit_bytes = limit_bytes
        self._unpacked = 0
        self._places: list[tuple[int, int] | None] = []  # offset, size of each buffer; None: given away
        end = 0
        for size in _list_of_sizes(sizes, "buffer size"):
            self._places.append((end, size))
            end += (size + ALIGN - 1) // ALIGN * ALIGN
        have = 0 if block is None else len(block)
        if end != have:
            raise MalformedError(
                f"manifest: its buffers make {end} bytes, the payload has {have}", op="decode"
            )

    def value(self, item: Any, depth: int) -> Any:
        if type(item) is not list:
            if type(item) not in _PLAIN:
                raise MalformedError(f"manifest: a {type(item).__name__} is no value", op="decode")
            return item
        if depth > MAX_DEPTH or not item:
            raise MalformedError("manifest: an empty array, or nested too deeply", op="decode")
        tag, rest = item[0], item[1:]
        if type(tag) is not int:
            raise MalformedError(f"manifest: {shown(tag)} is no kind of value", op="decode")
        if tag == LIST:
            return [self.value(entry, depth + 1) for entry in rest]
        if tag == DICT:
            return self._dict(rest, depth)
        if tag == TENSOR:
            return self._tensor(*rest)
        if tag == ARRAY:
            return self._array(*rest)
        if tag == BIG_INT:
            return int.from_bytes(_bytes(rest), "little", signed=True)
        if tag == WILD_STR:
            return _bytes(rest).decode("utf-8", "surrogatepass")
        if tag == LARGE_BYTES:
            return self._large(*rest)
        if tag == LARGE_STR:
            return self._large(*rest).decode("utf-8", "surrogatepass")
        if tag == PACKED:
            return self._packed(rest)
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
        if type(item) is list and (not item or item[0] not in (BIG_INT, WILD_STR)):
            raise MalformedError("manifest: a key must be a plain value", op="decode")
        return self.value(item, 0)

    def _large(self, index: Any) -> bytes:
        offset, size = self._place(index)
        return bytes(memoryview(self._block)[offset : offset + size]) if size else b""

    def _place(self, index: Any) -> tuple[int, int]:
        """A buffer's offset and size, once: a short manifest that names one again and again would fill memory."""
        if type(index) is not int or not 0 <= index < len(self._places):
            raise MalformedError(f"manifest: there is no buffer {shown(index)}", op="decode")
        place = self._places[index]
        if place is None:
            raise MalformedError(f"manifest: buffer {index} is given to two values", op="decode")
        self._places[index] = None
        return place

    def _place_of(self, index: Any, dims: list[int], item_bytes: int) -> tuple[int, int]:
        offset, size = self._place(index)
        if not fills(dims, item_bytes, size):
            raise MalformedError(
                f"manifest: buffer {index} has {size} bytes, not those of the shape {shown(dims)}",
                op="decode",
            )
        return offset, size

    def _tensor(self, index: Any, name: Any, on_device: Any, shape: Any) -> torch.Tensor:
        dtype = WIRE_DTYPES.get(name) if type(name) is str else None
        if dtype is None or type(on_device) is not bool:
            raise MalformedError(f"manifest: unknown tensor dtype {shown(name)}", op="decode")
        dims = _list_of_sizes(shape, "dimension")
        offset, size = self._place_of(index, dims, dtype.itemsize)
        device = self._device if on_device or self._everything else None
        if size == 0:
            return torch.empty(dims, dtype=dtype, device=device)
        if device is not None and self.arrival is not None:
            return self.arrival.tensor(dims, dtype, offset, size)
        count = size // dtype.itemsize
        tensor = torch.frombuffer(self._block, dtype=dtype, count=count, offset=offset).view(dims)
        if self._is_remote and not self._only_views:
            tensor = tensor.clone()  # a view would keep the sender's device memory
        return tensor if device is None else tensor.to(device)

    def _packed(self, rest: list[Any]) -> torch.Tensor:
        codes, scales, form, name, on_device, shape = rest
        known = type(form) is str and form in PACKED_FORMATS and type(name) is str and name in PACKED_NUMBERS
        if not known or type(on_device) is not bool:
            raise MalformedError(
                f"manifest: no tensor of {shown(name)} can be packed as {shown(form)}", op="decode"
            )
        dims = _list_of_sizes(shape, "dimension")
        if not dims or 0 in dims:
            raise MalformedError(f"manifest: a packed tensor of the shape {shown(dims)}", op="decode")
        ones = self._place_of(codes, dims, 1)
        others = self._place_of(scales, [_packing.scales_of(dims)], 4)
        dtype = PACKED_NUMBERS[name]
        self._count_unpacked(prod(dims) * dtype.itemsize)
        device = self._device if on_device or self._everything else None
        if device is None or self.arrival is None:
            return _packing.unpack(self._bytes_of(ones), self._bytes_of(others), name, form, dims, device)

        def make(out: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
            _packing.unpack_into(out, codes, scales, form)

        return self.arrival.made(dims, dtype, [ones, others], make)

    def _count_unpacked(self, size: int) -> None:
        """Before it is allocated."""
        self._unpacked += size
        if self._limit_bytes is not None and self._unpacked > self._limit_bytes:
            raise MalformedError(
                f"manifest: packed tensors make {self._unpacked} bytes, the limit is {self._limit_bytes} "
                "(max_dict_bytes)",
                op="decode",
            )

    def _bytes_of(self, place: tuple[int, int]) -> torch.Tensor:
        offset, size = place
        return torch.frombuffer(self._block, dtype=torch.uint8, count=size, offset=offset)

    def _array(self, index: Any, described: Any, shape: Any) -> np.ndarray[Any, Any]:
        dtype = parse_dtype(described)
        dims = _list_of_sizes(shape, "dimension")
        if len(dims) > _NUMPY_MAX_DIMS:
            raise MalformedError(f"manifest: an array of {len(dims)} dimensions", op="decode")
        offset, size = self._place_of(index, dims, dtype.itemsize)
        if size == 0:
            return np.empty(dims, dtype=dtype)
        array: np.ndarray[Any, Any] = np.ndarray(dims, dtype=dtype, buffer=self._block, offset=offset)
        return array.copy() if self._is_remote else array


_NUMPY_MAX_DIMS = 64


def _list_of_sizes(value: Any, what: str) -> list[int]:
    if type(value) is not list:
        raise MalformedError(f"manifest: {what}s must be a list", op="decode")
    for entry in value:
        if type(entry) is not int or not 0 <= entry < 1 << 62:
            raise MalformedError(f"manifest: {shown(entry)} is no {what}", op="decode")
    return value


def _bytes(rest: list[Any]) -> bytes:
    if len(rest) != 1 or type(rest[0]) is not bytes:
        raise MalformedError("manifest: bytes expected", op="decode")
    return rest[0]
