"""A link's shared segment seen from outside: its name, its memory, and what a peer gone wrong could write there."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHM = Path("/dev/shm")
SLOTS = 1024
PAGE = 4096
ENTRIES, RELEASES, CONTROLS = PAGE, PAGE + SLOTS * 64, PAGE + SLOTS * 64 + SLOTS * 8
PAYLOAD = CONTROLS + (64 << 10)
"""Where the parts of a segment begin: docs/wire_format.md, section "Shared segment"."""
HEAD = {
    "magic": 0,
    "version": 8,
    "slots": 12,
    "session": 16,
    "payload offset": 24,
    "payload bytes": 32,
    "state": 64,
    "bell": 128,
    "attention": 192,
    "room": 256,
    "room wanted": 320,
    "taken": 384,
    "control written": 832,
    "control read": 896,
}
ENTRY = {
    "number": (0, "Q"),
    "offset": (8, "Q"),
    "total": (16, "Q"),
    "tag": (24, "Q"),
    "sent": (32, "Q"),
    "epoch": (40, "I"),
    "manifest size": (44, "I"),
    "body size": (48, "I"),
    "checksum": (52, "I"),
    "body size, high": (56, "H"),
    "slot": (58, "H"),
    "kind": (60, "B"),
    "flags": (61, "B"),
}
"""Offset and type of each field."""


def names_of(pid: int) -> set[str]:
    """Segments in /dev/shm that this process made and that still have their names."""
    return {path.name for path in SHM.glob(f"zmqpp-{pid}-*")}


@contextmanager
def segment_of(pid: int) -> Iterator[mmap.mmap]:
    """The memory of the segment that this process made, though it has no name any more."""
    fd = os.open(_file_of(pid), os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as memory:
            yield memory
    finally:
        os.close(fd)


def put_entry(memory: mmap.mmap, number: int, field: str, value: int) -> None:
    """Overwrite a field of the entry with this number, which counts from 1."""
    at, kind = ENTRY[field]
    struct.pack_into("<" + kind, memory, ENTRIES + (number - 1) % SLOTS * 64 + at, value)


def entry(memory: mmap.mmap, number: int, field: str) -> int:
    """A field of the entry with this number."""
    at, kind = ENTRY[field]
    return struct.unpack_from("<" + kind, memory, ENTRIES + (number - 1) % SLOTS * 64 + at)[0]


def _file_of(pid: int) -> Path:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith(f"{SHM}/zmqpp-"):
            return path
    raise FileNotFoundError(f"process {pid} has no segment open")
