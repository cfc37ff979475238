"""Writes the fuzz targets' first inputs, from messages that a real link sends.

python -m tests.fuzz.make_corpus [FOLDER]          default: tests/fuzz/corpus

The same messages make the same files, named real-*; a test compares them, so run this after every change of the wire.
Inputs that once failed stay beside them under other names.
"""

from __future__ import annotations

import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from zmqpp import _engine
from zmqpp.config import TransportConfig
from zmqpp.transport import Link, Route

CORPUS = Path(__file__).with_name("corpus")

_HEAD, _KIND, _FLAGS, _SESSION, _TOTAL = _engine.HEAD_SIZE, 6, 8, 16, 48  # docs/wire_format.md
_DICT, _BYE, _CANCEL = 2, 5, 7
_ANY_SESSION = 77
_NOTHING, _EVERYTHING = 0, 31  # what fuzz_assembly.cc repairs
_LINK: dict[str, Any] = {"name": "stage 0", "rank": 0, "world_size": 2}

_DICTS: dict[str, dict[str, Any]] = {
    "empty": {},
    "tensors": {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor([True, False]), "z": torch.empty(0, 7)},
    "values": {"n": [1, None, True, 2.5, -(1 << 63), 1 << 100], "t": {"k": "ä", b"b": "\ud800", 7: b"\xff"}},
    "arrays": {"big": np.arange(4, dtype=">i4"), "record": np.zeros(2, [("a", "<i4"), ("b", "S3")])},
    "deep": {"x": [[[[[[[[[[torch.ones(3)]]]]]]]]]]},
    "step": {"hidden": torch.zeros(4, 32).bfloat16(), "residual": torch.zeros(4, 32).bfloat16()},
}


def make(folder: Path) -> None:
    """Write the inputs of every target into `folder`/TARGET."""
    inline, chunked = record(inline_bytes=1024), record(inline_bytes=0)
    checked = record(inline_bytes=1024, checksum=True)
    sessions = {"inline": inline, "chunked": chunked, "cancelled": cut_off(chunked), "checked": checked}
    for name, frames in sessions.items():
        for repair in (_NOTHING, _EVERYTHING):
            content = b"".join(struct.pack("<BH", repair, len(f)) + f for f in frames)
            _write(folder, "assembly", f"{name}-{repair}", content)
    for name, frames in {
        "inline": inline,
        "chunked": chunked[:8],
        "cancelled": cut_off(chunked)[-2:],
        "checked": checked[:2],
    }.items():
        for index, frame in enumerate(frames):
            _write(folder, "head", f"{name}-{index}", frame)
    _write(folder, "hello", "named", inline[0][_HEAD:])
    _write(folder, "hello", "nameless", _engine.write_hello(-1, 0, ""))
    texts = (b"stage 0", b"5d6f4c1e-boot", b"zmqpp-7-0123456789abcdef", b"")
    sizes = (len(text) for text in texts)
    _write(folder, "hello", "offer", struct.pack("<qqQ4H", 0, 2, 1 << 29, *sizes) + b"".join(texts))
    for session, frames in {"inline": inline, "chunked": chunked}.items():
        bodies = [frame for frame in frames if frame[_KIND] == _DICT]
        for name, frame in zip(_DICTS, bodies, strict=True):
            front = frame[_FLAGS : _FLAGS + 1] + frame[_TOTAL : _TOTAL + 8]
            _write(folder, "manifest", f"{session}-{name}", front + frame[_HEAD:])
    area, offset = 1 << 20, 143360  # docs/wire_format.md, "Shared segment"
    head = struct.pack("<8sIIQQQ", b"ZMQPSEG1", _engine.WIRE_VERSION, 1024, 7, offset, area).ljust(64, b"\0")
    _write(folder, "segment", "head", struct.pack("<Q", offset + area) + head + texts[2])
    _write(folder, "segment", "way-out", struct.pack("<Q", offset) + head + b"zmqpp-/../../etc/passwd")
    give, take = struct.pack("<BQ", 1, 5000), struct.pack("<BQ", 6, 0)
    for name, steps in {
        "in-order": [give, give, take, take],
        "too-many": [give, take, take],
        "none": [take],
    }.items():
        _write(folder, "releases", name, b"".join(steps))
    ring: dict[str, list[tuple[int, bytes]]] = {
        "whole": [(1, b"\x91\xc0".ljust(64, b"\0") + b"p" * 128), (1, b"\xc0".ljust(64, b"\0"))],
        "pieces": [(2, b"\x91\xc0".ljust(64, b"\0")), (3, b"p" * 128)],
        "cancelled": [(2, b"\x91\xc0".ljust(64, b"\0")), (4, b""), (1, b"\xc0".ljust(64, b"\0") + b"q" * 64)],
    }
    for name, parts in ring.items():
        for repair in (_NOTHING, 63):
            _write(folder, "ring", f"{name}-{repair}", _ring(repair, parts))
    for name, bodies in {"one": [b"step"], "several": [b"", b"x" * 64, b"y" * 65, b"z" * 700]}.items():
        for repair in (_NOTHING, 7):
            _write(folder, "controls", f"{name}-{repair}", _controls(repair, bodies))


def _ring(repair: int, parts: list[tuple[int, bytes]]) -> bytes:
    """The entries of a shared segment and its payload area, as fuzz_ring.cc takes them; a part: (kind, body)."""
    entries, area = b"", b""
    for number, (kind, body) in enumerate(parts, 1):
        manifest = len(body[:64].rstrip(b"\0")) if kind in (1, 2) else 0
        total = 128 if kind != 1 else len(body) - 64
        sizes = struct.pack("<IIIIHH", 3, manifest, len(body), _engine.crc32c(body), 0, number)
        entry = struct.pack("<QQQQQ", number, len(area), total, 9, 0) + sizes
        entries += bytes([repair]) + entry + bytes([kind, kind != 4, 0, 0])
        area += body
    return bytes([2, len(parts)]) + entries + area


def _controls(repair: int, bodies: list[bytes]) -> bytes:
    """A control ring that holds `bodies`, as fuzz_controls.cc takes it."""
    ring = b""
    for number, body in enumerate(bodies, 1):
        head = struct.pack("<QQQQIII", number, number - 1, 9, 0, len(body), 3, _engine.crc32c(body))
        ring += (head + bytes([number % 4, 1, 0, 0])).ljust(64, b"\0") + body
        ring += bytes(-len(ring) % 64)
    return struct.pack("<BBI", len(bodies), repair, len(ring)) + ring


def record(inline_bytes: int, checksum: bool = False) -> list[bytes]:
    """All messages of a session with `_DICTS` and one control message of each route, from its hello to its bye."""
    # Chunks are small so that sessions are, too; no beats, which come when they like.
    config = TransportConfig(
        inline_bytes=inline_bytes, chunk_bytes=128, heartbeat_s=0, lane="tcp", checksum=checksum
    )
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        with Link(bind="127.0.0.1:0", connect=None, config=config, **_LINK) as link:
            socket.connect(link.bound or "")
            link.wait_peers(10)
            for tag, values in enumerate(_DICTS.values()):
                link.isend_dict(values, tag=tag).wait_sent(10)  # or the controls might pass its chunks
            for route in Route:
                link.send_control(route.name.encode(), route=route, tag=9)
            closing = threading.Thread(target=link.close, args=(10,))
            closing.start()
            frames = [socket.recv()]
            while frames[-1][_KIND] != _BYE:
                frames.append(socket.recv())
            socket.close()  # which tells the link that its bye has arrived
            closing.join()
    return [_of_any_session(frame) for frame in frames]


def _of_any_session(frame: bytes) -> bytes:
    same = frame[:_SESSION] + struct.pack("<Q", _ANY_SESSION) + frame[_SESSION + 8 :]
    return _engine.write_checksum(same) if frame[_FLAGS] & _engine.FLAG_CHECKED else same


def cut_off(frames: list[bytes]) -> list[bytes]:
    """A session whose first dict with chunks is cancelled after its first chunk."""
    end = 2 + next(i for i, f in enumerate(frames) if f[_KIND] == _DICT and any(f[_TOTAL : _TOTAL + 8]))
    tag = _engine.read_head(frames[end - 1])["tag"]
    return [*frames[:end], _engine.write_head(_CANCEL, session=_ANY_SESSION, sequence=end, tag=tag)]


def _write(folder: Path, target: str, name: str, content: bytes) -> None:
    path = folder / target / f"real-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS)
