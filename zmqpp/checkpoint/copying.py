"""Tensors from file to file, byte for byte, through one small buffer, with a checksum of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from zmqpp.checkpoint.durable import PART, sync_folder
from zmqpp.checkpoint.header import TensorEntry, read_header
from zmqpp.checkpoint.shards import Shard
from zmqpp.errors import ChecksumError, ConfigError

Moved = Callable[[int], None]
"""Told how many bytes were copied or read back since the last call."""

_BUFFER_BYTES = 4 << 20
_DIGEST_BYTES = 16


def write_shard(shard: Shard, folder: Path, moved: Moved) -> dict[str, str]:
    """Write, sync, read back and only then name one file; returns tensor -> checksum of the source's bytes.

    Reads byte ranges rather than through a mapping: a source that shrinks meanwhile is an error, not a SIGBUS, and
    the memory in use is one buffer.

    Raises:
        ChecksumError: what was read back is not what was copied.   ConfigError: the source became shorter.
        OSError: the disk is full, or broken.
    """
    part = folder / (shard.name + PART)
    try:
        checksums = _copy(shard, part, moved)
        damage = damaged_tensor(shard, part, checksums, moved)
        if damage:
            raise ChecksumError(
                f"{part.with_name(shard.name)}: {damage} reads back otherwise than it was written; the disk or the "
                f"memory of this machine is at fault, write to another one"
            )
        part.replace(folder / shard.name)
        sync_folder(folder)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return checksums


def _copy(shard: Shard, part: Path, moved: Moved) -> dict[str, str]:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    checksums = {}
    with part.open("wb", buffering=0) as target:
        _write_all(target, memoryview(shard.header()))
        for entry in shard.entries:
            checksums[entry.name] = _each_piece(entry, buffer, lambda piece: _write_all(target, piece), moved)
        os.fsync(target.fileno())
        # What is read back has to come from the disk, not from the memory it was written to.
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return checksums


def _write_all(target: BinaryIO | object, piece: memoryview) -> None:
    while len(piece):
        piece = piece[target.write(piece) :]  # type: ignore[union-attr]


def _each_piece(
    entry: TensorEntry, buffer: memoryview, take: Callable[[memoryview], None], moved: Moved
) -> str:
    """Hand the tensor's bytes to `take` piece by piece; returns their checksum."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with entry.path.open("rb", buffering=0) as source:
        source.seek(entry.offset_bytes)
        left = entry.size_bytes
        while left:
            got = source.readinto(buffer[: min(left, len(buffer))])
            if not got:
                raise ConfigError(
                    f"{entry.path} became shorter while {entry.name} was read from it; start again"
                )
            piece = buffer[:got]
            digest.update(piece)
            take(piece)
            moved(got)
            left -= got
    return digest.hexdigest()


def source_sums(shard: Shard, moved: Moved) -> dict[str, str]:
    """Tensor -> checksum, of the source as it is now.

    Raises:
        ConfigError: the source became shorter.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    return {entry.name: _each_piece(entry, buffer, lambda _: None, moved) for entry in shard.entries}


def damaged_tensor(shard: Shard, path: Path, checksums: dict[str, str], moved: Moved) -> str:
    """The first tensor in `path` that is not what `shard` and `checksums` say; empty when all are."""
    try:
        found = {entry.name: entry for entry in read_header(path)}
    except ConfigError:
        return "its header"
    if list(found) != [entry.name for entry in shard.entries if entry.name in found]:
        return "its list of tensors"
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for wanted in shard.entries:
        entry = found.get(wanted.name)
        if entry is None or (entry.dtype, entry.shape) != (wanted.dtype, wanted.shape):
            return wanted.name
        if _each_piece(entry, buffer, lambda _: None, moved) != checksums.get(wanted.name):
            return wanted.name
    return ""
