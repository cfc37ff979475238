"""One stage's folder: written file by file below a hidden name, taken up again where it stopped, then named."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zmqpp.checkpoint.copying import Moved, damaged_tensor, write_shard
from zmqpp.checkpoint.durable import publish, write_file
from zmqpp.checkpoint.files import INDEX
from zmqpp.checkpoint.manifest import StageRecord
from zmqpp.checkpoint.shards import Shard, index
from zmqpp.layers import LayerRange

CHECKSUMS = "zmqpp_checksums.json"
"""Beside the shards: file -> tensor -> checksum, so that a folder can be checked wherever it is copied to."""


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
        """Of all files; the checksums are some dozen bytes a tensor."""
        copies = sum(path.stat().st_size for path in self.copies.values())
        sums = 128 * sum(len(shard.entries) for shard in self.shards)
        return (
            sum(shard.size_bytes for shard in self.shards)
            + sum(map(len, self.texts.values()))
            + copies
            + sums
        )

    @property
    def written_bytes(self) -> int:
        """Of its files that are there already."""
        folder = self.final if self.final.exists() else self.partial
        return sum((folder / s.name).stat().st_size for s in self.shards if (folder / s.name).exists())

    def record(self) -> StageRecord:
        """For the manifest; valid once `damage` found none or `write` returned."""
        return StageRecord(self.name, self.layers.start, self.layers.end, self.weight_bytes, self._sums)

    def damage(self) -> str:
        """What is wrong with the finished folder, by file and tensor; empty when every byte is as it shall be."""
        self._sums = self._read_sums(self.final)
        for shard in self.shards:
            if wrong := damaged_tensor(
                shard, self.final / shard.name, self._sums.get(shard.name, {}), self.moved
            ):
                return f"{shard.name}: {wrong}"
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
        self._sums = self._read_sums(self.partial)
        kept = 0
        for shard in self.shards:
            if self._is_written(shard):
                kept += 1
                continue
            self._sums[shard.name] = write_shard(shard, self.partial, self.moved)
            self._write_sums()
        self._remove_strangers()
        for name, source in self.copies.items():
            (self.partial / name).parent.mkdir(exist_ok=True)
            write_file(self.partial / name, source.read_bytes())
        for name, content in {INDEX: index(self.shards), **self.texts}.items():
            write_file(self.partial / name, content)
        publish(self.partial, self.final)
        return kept

    def _is_written(self, shard: Shard) -> bool:
        sums = self._sums.get(shard.name)
        path = self.partial / shard.name
        return sums is not None and path.exists() and not damaged_tensor(shard, path, sums, self.moved)

    def _remove_strangers(self) -> None:
        wanted = {*(shard.name for shard in self.shards), CHECKSUMS}
        for path in self.partial.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _expected_files(self) -> dict[str, str]:
        expected = {name: _digest(path.read_bytes()) for name, path in self.copies.items()}
        texts = {INDEX: index(self.shards), **self.texts}
        return expected | {name: _digest(content) for name, content in texts.items()}

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


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
