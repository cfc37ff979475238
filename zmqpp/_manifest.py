"""The words of a manifest that its writer and its reader share. Prose: docs/wire_format.md, section "Manifest"."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zmqpp import _engine

ALIGN = _engine.ALIGN
"""Every buffer of a payload starts at a multiple of this many bytes."""
MAX_BYTES = _engine.MAX_MANIFEST_BYTES
MAX_DEPTH = 64
"""Levels of lists and dicts inside one another."""

LIST, DICT, TENSOR, ARRAY, BIG_INT, WILD_STR, LARGE_BYTES, LARGE_STR, PACKED = range(9)
"""First element of an array in the manifest: what kind of value the rest describes."""

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
WIRE_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}

PACKED_RUN = _engine.PACK_RUN
"""Values of a packed tensor that share a scale."""
PACKED_FORMATS = ("fp8", "int8")
PACKED_NUMBERS = {name: WIRE_DTYPES[name] for name in ("float32", "float16", "bfloat16")}
"""What can be packed, by its wire name."""


def fills(dims: Sequence[int], item_bytes: int, size_bytes: int) -> bool:
    """Whether elements of `dims`, none negative, make exactly `size_bytes`.

    A product of all that a manifest can list would be a number of millions of digits: it ends where it is too large.
    """
    if 0 in dims or not item_bytes:
        return size_bytes == 0
    made = item_bytes
    for n in dims:
        made *= n
        if made > size_bytes:
            return False
    return made == size_bytes
