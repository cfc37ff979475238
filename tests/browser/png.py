"""How many colours a screenshot has: a blank one has a single one. Standard library only."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def colours(path: Path) -> int:
    """Different byte runs among its rows' pixels, sampled; enough to tell a picture from a blank."""
    raw = path.read_bytes()
    assert raw.startswith(_SIGNATURE), f"{path} is no PNG"
    width, _height, depth, kind = struct.unpack(">IIBB", raw[16:26])
    assert depth == 8, f"{path}: {depth} bits a channel"
    channels = {2: 3, 6: 4}[kind]
    rows, step = zlib.decompress(b"".join(_chunks(raw, b"IDAT"))), width * channels + 1
    # Filtered bytes: in a blank picture every row is the same after its first pixel.
    return len({rows[at : at + step] for at in range(0, len(rows), step)})


def _chunks(raw: bytes, wanted: bytes) -> list[bytes]:
    found, at = [], len(_SIGNATURE)
    while at < len(raw):
        length, name = struct.unpack(">I4s", raw[at : at + 8])
        if name == wanted:
            found.append(raw[at + 8 : at + 8 + length])
        at += 12 + length
    return found
