"""numpy dtypes <-> the manifest's word for them: a type string, or a list of named fields. No objects."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from zmqpp._shown import shown
from zmqpp.errors import MalformedError, UnsupportedError

_KINDS = "biufcmMSUV"
# Byte order, kind, size, unit of time: as dtype.str writes them.
_TYPE = re.compile(r"[<>|=][biufcmMSUV][0-9]{1,9}(\[([0-9]{1,9})?[A-Za-zμ]{1,7}(/[0-9]{1,9})?\])?")
_MAX_FIELDS = 256
_MAX_NESTING = 8


def describe_dtype(dtype: np.dtype[Any], path: str, nesting: int = 0) -> Any:
    """`"<f4"`, or for structured dtypes `[itemsize, [name, offset, dtype, shape, title], ...]`.

    Raises:
        UnsupportedError: it holds Python objects, or is of a kind without plain bytes.
    """
    if dtype.hasobject or dtype.kind not in _KINDS or type(dtype).__module__.partition(".")[0] != "numpy":
        raise UnsupportedError(f"{path}: numpy arrays of dtype {dtype} cannot be sent: no plain bytes")
    if dtype.names is None:
        if dtype.subdtype is not None or not _TYPE.fullmatch(dtype.str):
            raise UnsupportedError(f"{path}: numpy arrays of dtype {dtype} cannot be sent")
        return dtype.str
    if len(dtype.names) > _MAX_FIELDS or nesting >= _MAX_NESTING:
        raise UnsupportedError(f"{path}: dtype {dtype} has too many fields, or too many levels of them")
    fields: Any = dtype.fields
    described: list[Any] = [dtype.itemsize]
    for name in dtype.names:
        field, offset, title = (*fields[name], None)[:3]
        if title is not None and type(title) is not str:
            raise UnsupportedError(f"{path}: the field {name!r} of dtype {dtype} has a title that is no str")
        base, shape = field.subdtype or (field, ())
        described.append([name, offset, describe_dtype(base, path, nesting + 1), list(shape), title])
    return described


def parse_dtype(described: Any, nesting: int = 0) -> np.dtype[Any]:
    """The inverse of `describe_dtype`, for bytes that nobody vouches for.

    Raises:
        MalformedError: not something `describe_dtype` writes. numpy's own errors: impossible combinations.
    """
    if type(described) is str:
        if not _TYPE.fullmatch(described):
            raise MalformedError(f"manifest: unknown array dtype {shown(described)}", op="decode")
        return np.dtype(described)
    if type(described) is not list or not 1 <= len(described) <= _MAX_FIELDS + 1 or nesting >= _MAX_NESTING:
        raise MalformedError("manifest: malformed array dtype", op="decode")
    names, offsets, formats, titles = [], [], [], []
    for name, offset, base, shape, title in described[1:]:
        if type(name) is not str or type(offset) is not int or type(shape) is not list:
            raise MalformedError("manifest: malformed field of an array dtype", op="decode")
        if title is not None and type(title) is not str:
            raise MalformedError("manifest: malformed title of an array field", op="decode")
        names.append(name)
        titles.append(title)
        offsets.append(offset)
        formats.append((parse_dtype(base, nesting + 1), tuple(shape)))
    layout: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": described[0]}
    if any(titles):
        layout["titles"] = titles
    parsed: np.dtype[Any] = np.dtype(layout)
    return parsed
