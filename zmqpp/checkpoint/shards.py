"""How the tensors of a stage are laid out in safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zmqpp.checkpoint.header import SIZE_BYTES, TensorEntry

_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class Shard:
    """One file to be written: `entries` are where its tensors come from, in the order they go in."""

    name: str
    entries: tuple[TensorEntry, ...]

    @property
    def tensor_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header()) + self.tensor_bytes

    def header(self) -> bytes:
        """The size and the JSON, padded so that the first tensor is aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for entry in self.entries:
            end = position + entry.size_bytes
            header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(SIZE_BYTES + len(text)) % _ALIGNMENT_BYTES)
        return struct.pack("<Q", len(text)) + text


def plan_shards(tensors: Iterable[TensorEntry], max_bytes: int) -> list[Shard]:
    """Fill one file after the other, in order; a tensor above `max_bytes` gets a file of its own."""
    groups = list(_groups(tensors, max_bytes))
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", _aligned(group))
        for number, group in enumerate(groups, 1)
    ]


def _groups(tensors: Iterable[TensorEntry], max_bytes: int) -> Iterator[list[TensorEntry]]:
    group: list[TensorEntry] = []
    filled = 0
    for entry in tensors:
        if group and filled + entry.size_bytes > max_bytes:
            yield group
            group, filled = [], 0
        group.append(entry)
        filled += entry.size_bytes
    if group:
        yield group


def _aligned(group: list[TensorEntry]) -> tuple[TensorEntry, ...]:
    """Wide elements first, as safetensors itself writes them; order is kept among equals.

    Files of one dtype keep their order; where several source files meet, a float32 behind an odd number of
    int8 could not be viewed in place.
    """
    return tuple(sorted(group, key=lambda entry: -entry.alignment_bytes))


def index(shards: Iterable[Shard]) -> bytes:
    """model.safetensors.index.json of a stage."""
    shards = list(shards)
    weight_map = {entry.name: shard.name for shard in shards for entry in shard.entries}
    total = sum(shard.tensor_bytes for shard in shards)
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
