"""The header of a safetensors file: a u64 size, so many bytes of JSON, then the tensors without a gap.

Read here rather than by the safetensors package because export copies byte ranges of any dtype, and because the
message has to say what to do. Source of the format: https://github.com/huggingface/safetensors, README "Format".
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError

SIZE_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors package."""

# Bits of one element. A dtype that is not listed is copied all the same, but its shape cannot be checked.
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `size_bytes` at `offset_bytes` from the start of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset_bytes: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def alignment_bytes(self) -> int:
        """What readers that view the file in place need its offset to be divisible by; at least 1."""
        return max(1, DTYPE_BITS.get(self.dtype, 8) // 8)


def read_header(path: Path) -> list[TensorEntry]:
    """The file's tensors in the order of their bytes; every size is checked before it is used.

    Raises:
        ConfigError: not safetensors, truncated, or a header that contradicts itself or the file.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = _header_size(path, file.read(SIZE_BYTES), size_bytes)
            text = file.read(header_bytes)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    start = SIZE_BYTES + header_bytes
    entries = [_entry(path, name, value, start) for name, value in _objects(path, text).items()]
    entries.sort(key=lambda entry: (entry.offset_bytes, entry.size_bytes))
    _check_extent(path, entries, start, size_bytes)
    return entries


def _header_size(path: Path, first: bytes, size_bytes: int) -> int:
    if len(first) < SIZE_BYTES:
        raise ConfigError(
            f"{path} is not a safetensors file: it has {size_bytes} bytes; download or save it again"
        )
    (header_bytes,) = struct.unpack("<Q", first)
    if header_bytes > MAX_HEADER_BYTES or header_bytes < 2:
        raise ConfigError(
            f"{path} is not a safetensors file: its first 8 bytes announce a header of {_n(header_bytes)} bytes, "
            f"2 to {_n(MAX_HEADER_BYTES)} are possible; download or save it again"
        )
    if SIZE_BYTES + header_bytes > size_bytes:
        raise ConfigError(
            f"{path.name} is truncated: its header alone takes {_n(SIZE_BYTES + header_bytes)} bytes, the file has "
            f"{_n(size_bytes)}; download it again ({path})"
        )
    return int(header_bytes)


def _objects(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
        "".join(header).encode()  # Escapes can spell names that are no text.
    except (ValueError, TypeError, RecursionError):
        raise ConfigError(
            f"{path} is not a safetensors file: its header is not JSON; download or save it again"
        ) from None
    if not isinstance(header, dict):
        raise ConfigError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    value = value if isinstance(value, dict) else {}
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ConfigError(
            f"{path}: the header's entry of {name} lacks a dtype, shape or data_offsets that make sense"
        )
    begin, end = offsets
    entry = TensorEntry(name, dtype, tuple(shape), path, start + begin, end - begin)
    bits = DTYPE_BITS.get(dtype)
    if begin > end or (bits is not None and (entry.elements * bits + 7) // 8 != end - begin):
        raise ConfigError(
            f"{path}: {name} is {dtype} {list(shape)}, which does not take the {_n(end - begin)} bytes that its "
            f"data_offsets {begin}..{end} give it; download or save the file again"
        )
    return entry


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_extent(path: Path, entries: list[TensorEntry], start: int, size_bytes: int) -> None:
    """The tensors lie one behind the other and end where the file ends."""
    position, last = start, "the header"
    for entry in entries:
        if entry.offset_bytes != position:
            wrong = "overlaps" if entry.offset_bytes < position else "leaves a gap after"
            raise ConfigError(f"{path}: {entry.name} {wrong} {last}; download or save the file again")
        position, last = entry.offset_bytes + entry.size_bytes, entry.name
    if position > size_bytes:
        raise ConfigError(
            f"{path.name} is truncated: its header describes {_n(position)} bytes, the file has {_n(size_bytes)}; "
            f"download it again ({path})"
        )
    if position < size_bytes:
        raise ConfigError(
            f"{path.name} has {_n(size_bytes - position)} bytes behind its last tensor; download it again ({path})"
        )


def _n(number: int) -> str:
    """1234567 -> `1 234 567`."""
    return f"{number:,}".replace(",", " ")
