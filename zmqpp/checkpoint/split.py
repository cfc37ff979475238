"""A model split into one folder a stage, as `zmqpp export` leaves it: `stage_0` .. `stage_{N-1}`.

What counts is each stage's `_pipeline_info`, so splits that other tools made in the documented form work too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.config import (
    PIPELINE_FILE,
    ExportedStage,
    exported_stage,
    layer_count,
    read_config,
    source_fingerprint,
)
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous

__all__ = ["Split", "find_split", "open_split"]

_STAGE = re.compile(r"stage_(\d+)")


@dataclass(frozen=True)
class Split:
    """The stages' folders and ranges, in stage order; `config` is stage 0's config.json."""

    folder: Path
    models: tuple[Path, ...]
    ranges: tuple[LayerRange, ...]
    config: dict[str, Any]

    def __len__(self) -> int:
        return len(self.models)


def open_split(folder: Path, stages: int | None = None) -> Split:
    """The split in `folder`, of `stages` stages if that is given.

    Raises:
        ConfigError: none there, another number, or as `find_split`.
    """
    if not folder.is_dir():
        raise ConfigError(f"--pipeline-dir {folder}: no such folder")
    split = find_split(folder)
    if split is None:
        is_model = (folder / "config.json").is_file()
        hint = "it is a model: give it as MODEL" if is_model else "make one with `zmqpp export`"
        raise ConfigError(f"--pipeline-dir {folder}: there is no stage_0 in it; {hint}")
    if stages is not None and stages != len(split):
        raise ConfigError(
            f"--num-stages {stages}: {folder} is a split into {len(split)} stages; leave the number out, or "
            f"export the model again"
        )
    return split


def find_split(folder: Path) -> Split | None:
    """The split in `folder`; None when it holds no stage.

    Raises:
        ConfigError: an export that is not finished, a stage missing, stages of different exports.
    """
    found = {int(match[1]): path for path in folder.iterdir() if (match := _STAGE.fullmatch(path.name))}
    if any(folder.glob(".stage_*")) and not (folder / PIPELINE_FILE).exists():
        raise ConfigError(
            f"{folder}: the export into it is not finished; run the same `zmqpp export` again, it goes on"
        )
    if not found:
        return None
    exported = {index: _read(path) for index, path in found.items()}
    total = exported[min(found)][0].stages
    _check_complete(folder, sorted(found), total)
    for index, (info, _) in exported.items():
        if (info.stage, info.stages) != (index, total):
            raise ConfigError(
                f"{found[index]} was exported as stage {info.stage} of {info.stages}, but lies here as stage {index} "
                f"of {total}: export all stages again, together"
            )
    _check_one_model({index: found[index] for index in range(total)})
    ranges = tuple(exported[index][0].layers for index in range(total))
    config = exported[0][1]
    check_contiguous(ranges, layer_count(config) or ranges[-1].end)
    return Split(folder, tuple(found[index] for index in range(total)), ranges, config)


def _check_one_model(stages: dict[int, Path]) -> None:
    """Stages of other weights fit together as well, and answer nonsense; other tools' splits do not tell."""
    told = {index: mark for index, path in stages.items() if (mark := source_fingerprint(path))}
    first = min(told, default=0)
    for index, mark in told.items():
        if mark != told[first]:
            raise ConfigError(
                f"{stages[index]} was exported from another model, or another version of it, than {stages[first]}: "
                f"export all stages again, together"
            )


def _check_complete(folder: Path, found: list[int], total: int) -> None:
    missing = [index for index in range(max(total, found[-1] + 1)) if index not in found]
    if missing:
        names = ", ".join(f"stage_{index}" for index in missing)
        there = ", ".join(f"stage_{index}" for index in found)
        raise ConfigError(
            f"{folder} is a split into {total} stages, but {names} {'is' if len(missing) == 1 else 'are'} missing "
            f"(it has {there}); copy what is missing here, or export again"
        )


def _read(model: Path) -> tuple[ExportedStage, dict[str, Any]]:
    config = read_config(str(model)) or {}
    info = exported_stage(config)
    if info is None:
        raise ConfigError(
            f"{model / 'config.json'} has no _pipeline_info: it is no stage that `zmqpp export` made"
        )
    return info, config
