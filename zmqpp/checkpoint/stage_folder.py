"""One stage's folder: written file by file below a hidden name, taken up again where it stopped, then named."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zmqpp.checkpoint.config import CHECKSUMS
from zmqpp.checkpoint.copying import Moved, damaged_tensor, source_sums, write_shard
from zmqpp.checkpoint.durable import publish, write_file
from zmqpp.checkpoint.files import INDEX
from zmqpp.checkpoint.manifest import StageRecord
from zmqpp.checkpoint.shards import Shard, index
from zmqpp.layers import LayerRange

_BLOCK_BYTES = 4096


class Checksums(msgspec.Struct):
    """What CHECKSUMS holds; `fingerprint` is the source model's."""

    fingerprint: str
    tensors: dict[str, dict[str, str]]


@dataclass
class StageFolder:
    """What a stage's folder shall hold.

    Attributes:
        root: the export's folder.
        shards: files of tensors.
        texts: name -> content of files that are made.
        copies: path within the folder -> file it is a copy of.
        fingerprint: of the source model.
        moved: told of bytes copied or read back.
    """

    root: Path
    stage: int
    layers: LayerRange
    shards: list[Shard]
    texts: dict[str, bytes]
    copies: dict[str, Path]
    fingerprint: str
    moved: Moved
    _sums: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"stage_{self.stage}"

    @property
    def final(self) -> Path:
        return self.root / self.name

    @property
    def partial(self) -> Path:
        """Hidden, and never taken for a model: it gets its config.json last."""
        return self.root / f".{self.name}.partial"

    @property
    def weight_bytes(self) -> int:
        return sum(shard.tensor_bytes for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Of all files, as a disk counts them; the checksums are some dozen bytes a tensor."""
        sizes = [shard.size_bytes for shard in self.shards]
        sizes += [path.stat().st_size for path in self.copies.values()]
        sizes += map(len, self._made().values())
        sizes.append(128 * sum(len(shard.entries) for shard in self.shards))
        return sum(map(_in_blocks, sizes))

    @property
    def missing_bytes(self) -> int:
        """Of its files that are not there yet."""
        folder = self.final if self.final.exists() else self.partial
        there = [folder / shard.name for shard in self.shards if (folder / shard.name).exists()]
        return max(0, self.size_bytes - sum(_in_blocks(path.stat().st_size) for path in there))

    def record(self) -> StageRecord:
        """For the manifest; valid once `damage` found none or `write` returned."""
        return StageRecord(self.name, self.layers.start, self.layers.end, self.weight_bytes, self._sums)

    def damage(self) -> str:
        """What in the finished folder is not as the source has it now, by file and tensor; empty when nothing."""
        self._sums = {}
        recorded = self._read_sums(self.final)
        for shard in self.shards:
            sums = source_sums(shard, self.moved)
            if wrong := damaged_tensor(shard, self.final / shard.name, sums, self.moved):
                return f"{shard.name}: {wrong}"
            if recorded.get(shard.name) != sums:
                return CHECKSUMS
            self._sums[shard.name] = sums
        for name, digest in self._expected_files().items():
            path = self.final / name
            if path.is_symlink() or not path.is_file() or _digest(path.read_bytes()) != digest:
                return name
        return ""

    def write(self) -> int:
        """Write what is not there yet, check it, and give the folder its name; returns how many shards were kept.

        Raises:
            ChecksumError, ConfigError, OSError: as `write_shard`.
        """
        self.partial.mkdir(exist_ok=True)
        self._sums = {}
        kept = 0
        for shard in self.shards:
            sums = self._written(shard)
            kept += sums is not None
            self._sums[shard.name] = sums or write_shard(shard, self.partial, self.moved)
            self._write_sums()
        self._remove_strangers()
        for name, source in self.copies.items():
            (self.partial / name).parent.mkdir(exist_ok=True)
            write_file(self.partial / name, source.read_bytes())
        for name, content in self._made().items():
            write_file(self.partial / name, content)
        publish(self.partial, self.final)
        return kept

    def _written(self, shard: Shard) -> dict[str, str] | None:
        """Checksums of a shard that an earlier run wrote, if it holds what the source holds now."""
        path = self.partial / shard.name
        if not path.exists():
            return None
        sums = source_sums(shard, self.moved)
        return None if damaged_tensor(shard, path, sums, self.moved) else sums

    def _remove_strangers(self) -> None:
        wanted = {*(shard.name for shard in self.shards), CHECKSUMS}
        for path in self.partial.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _expected_files(self) -> dict[str, str]:
        expected = {name: _digest(path.read_bytes()) for name, path in self.copies.items()}
        return expected | {name: _digest(content) for name, content in self._made().items()}

    def _made(self) -> dict[str, bytes]:
        return {INDEX: index(self.shards), **self.texts}

    def _read_sums(self, folder: Path) -> dict[str, dict[str, str]]:
        try:
            found = msgspec.json.decode((folder / CHECKSUMS).read_bytes(), type=Checksums)
        except (OSError, msgspec.MsgspecError):
            return {}
        return found.tensors if found.fingerprint == self.fingerprint else {}

    def _write_sums(self) -> None:
        document = {"fingerprint": self.fingerprint, "tensors": self._sums}
        write_file(
            self.partial / CHECKSUMS, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
        )


def _in_blocks(size_bytes: int) -> int:
    """What most file systems take for a file of that size."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
