"""One folder a stage with only its tensors: atomic, resumable, every byte checked against the source."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.companions import companions, stage_config
from zmqpp.checkpoint.copying import Moved
from zmqpp.checkpoint.durable import discard
from zmqpp.checkpoint.manifest import PipelineManifest, StageRecord
from zmqpp.checkpoint.output import (
    begin,
    check_place,
    check_space,
    explained,
    finish,
    in_the_way,
    opened,
    reopen,
)
from zmqpp.checkpoint.problems import range_problems
from zmqpp.checkpoint.shards import plan_shards
from zmqpp.checkpoint.share import stage_tensors
from zmqpp.checkpoint.stage_folder import StageFolder
from zmqpp.errors import ConfigError, LayerRangeError
from zmqpp.layers import LayerRange
from zmqpp.version import __version__


@dataclass(frozen=True)
class Progress:
    """Who is told how far it is: bytes moved, and one line a stage."""

    moved: Moved = lambda _: None
    say: Callable[[str], None] = lambda _: None


@dataclass
class Export:
    """What is to be exported.

    Attributes:
        checkpoint: a full model.
        ranges: of all stages, in order.
        out: folder for `stage_0` .. and `pipeline.json`.
        max_shard_bytes: of tensors in one file; a larger tensor has a file of its own.
        overwrite: replace another export that lies in `out`.
    """

    checkpoint: Checkpoint
    ranges: list[LayerRange]
    out: Path
    max_shard_bytes: int = 5 * 10**9
    overwrite: bool = False
    progress: Progress = field(default_factory=Progress)

    def run(self) -> PipelineManifest:
        """Write what is not there yet; returns when all is on disk and checked.

        Raises:
            ConfigError: the model, the ranges or the folder do not allow it; nothing was written.
            ResourceError: no space; the same command goes on later.
            ChecksumError: the disk returned other bytes than it was given.
        """
        self._check()
        with opened(self.out):
            try:
                return self._write()
            except OSError as error:
                raise explained(self.out, error) from None

    @property
    def total_bytes(self) -> int:
        """`Progress.moved` hears of so many: everything is copied, then read back."""
        return 2 * sum(
            entry.size_bytes
            for stage in range(len(self.ranges))
            for entry in stage_tensors(self.checkpoint, self.ranges, stage)
        )

    def _check(self) -> None:
        checkpoint = self.checkpoint
        if checkpoint.exported is not None:
            raise ConfigError(
                f"{checkpoint.folder} is stage {checkpoint.exported.stage} of an export: give the full model"
            )
        check_ranges(self.ranges, checkpoint.total_layers)
        check_place(self.out, checkpoint.folder)

    def _write(self) -> PipelineManifest:
        wanted = self._manifest(
            [StageRecord(f"stage_{i}", r.start, r.end) for i, r in enumerate(self.ranges)]
        )
        folders = [self._folder(stage, wanted.fingerprint) for stage in range(len(self.ranges))]
        self._begin(wanted, folders)
        for folder in folders:
            self._stage(folder, wanted)
        manifest = msgspec.structs.replace(wanted, stages=[folder.record() for folder in folders])
        finish(self.out, manifest)
        return manifest

    def _begin(self, wanted: PipelineManifest, folders: list[StageFolder]) -> None:
        """Nothing that lies there is given up before it is known that the new export fits."""
        discarded = in_the_way(self.out, wanted, self.overwrite)
        if discarded is None:
            check_space(self.out, sum(folder.missing_bytes for folder in folders))
            return
        check_space(self.out, sum(folder.size_bytes for folder in folders), discarded)
        begin(self.out, wanted, discarded)

    def _manifest(self, stages: list[StageRecord]) -> PipelineManifest:
        return PipelineManifest(
            source=self.checkpoint.name,
            fingerprint=self.checkpoint.fingerprint(),
            total_layers=self.checkpoint.total_layers,
            max_shard_bytes=self.max_shard_bytes,
            stages=stages,
            zmqpp_version=__version__,
        )

    def _folder(self, stage: int, fingerprint: str) -> StageFolder:
        return StageFolder(
            root=self.out,
            stage=stage,
            layers=self.ranges[stage],
            shards=plan_shards(stage_tensors(self.checkpoint, self.ranges, stage), self.max_shard_bytes),
            texts={"config.json": stage_config(self.checkpoint, self.ranges, stage)},
            copies=companions(self.checkpoint, stage),
            fingerprint=fingerprint,
            moved=self.progress.moved,
        )

    def _stage(self, folder: StageFolder, wanted: PipelineManifest) -> None:
        if folder.final.exists():
            damage = folder.damage()
            if not damage:
                self.progress.say(f"stage {folder.stage}: already there, verified")
                return
            self.progress.say(
                f"stage {folder.stage}: already there, but differs from the model ({damage}); writing it again"
            )
            reopen(self.out, wanted)
            discard(folder.final)
        started = time.monotonic()
        kept = folder.write()
        self.progress.say(_line(folder, kept, time.monotonic() - started))


def check_ranges(ranges: Sequence[LayerRange], total_layers: int) -> None:
    """Raise LayerRangeError with the first problem and the number of the others."""
    problems = range_problems([str(layers) for layers in ranges], total_layers)
    if problems:
        more = f" (and {len(problems) - 1} more: zmqpp validate lists them)" if len(problems) > 1 else ""
        raise LayerRangeError(problems[0] + more)


def _line(folder: StageFolder, kept: int, seconds: float) -> str:
    from zmqpp.units import size

    files = f"{len(folder.shards)} file{'s' if len(folder.shards) > 1 else ''}"
    found = f" ({kept} of them already there)" if kept else ""
    return (
        f"stage {folder.stage}: layers {folder.layers}, {size(folder.weight_bytes)} in {files}{found}, "
        f"written and verified in {seconds:.1f} s"
    )
