"""Reading a folder that `zmqpp export` made: stage_0, stage_1, ... with `_pipeline_info` in each config.json."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous
from zmqpp.pipeline.model_config import layer_count, read_config

__all__ = ["ExportedStage", "exported_stages"]

_NAME = re.compile(r"stage_(\d+)")
_FIELDS = ("stage_idx", "total_stages", "start_layer", "end_layer")


@dataclass(frozen=True)
class ExportedStage:
    """One stage's folder."""

    path: Path
    layers: LayerRange
    config: dict[str, Any]


def exported_stages(folder: Path) -> list[ExportedStage]:
    """All stages in order; empty when the folder has none.

    Raises:
        ConfigError: a stage is missing, one was made for another pipeline, or layers do not fit together.
    """
    found = sorted(
        int(m[1]) for path in folder.iterdir() if path.is_dir() and (m := _NAME.fullmatch(path.name))
    )
    if not found:
        return []
    infos = [_info(folder / f"stage_{index}") for index in found]
    total = int(infos[0][0]["total_stages"])
    _check_complete(folder, found, max(total, found[-1] + 1))
    stages = []
    for index, (info, config) in enumerate(infos):
        path = folder / f"stage_{index}"
        if (info["stage_idx"], info["total_stages"]) != (index, total):
            raise ConfigError(
                f"{path} was exported as stage {info['stage_idx']} of {info['total_stages']}, but lies here as "
                f"stage {index} of {total}: export all stages again, together"
            )
        stages.append(
            ExportedStage(path, LayerRange.parse(f"{info['start_layer']}-{info['end_layer']}"), config)
        )
    check_contiguous(
        [stage.layers for stage in stages], layer_count(stages[0].config) or stages[-1].layers.end
    )
    return stages


def _check_complete(folder: Path, found: list[int], total: int) -> None:
    missing = [index for index in range(total) if index not in found]
    if missing:
        names = ", ".join(f"stage_{index}" for index in missing)
        there = ", ".join(f"stage_{index}" for index in found)
        raise ConfigError(
            f"{folder} is a split into {total} stages, but {names} {'is' if len(missing) == 1 else 'are'} missing "
            f"(it has {there}); copy what is missing here, or export again"
        )


def _info(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """`_pipeline_info` and the whole config.json."""
    config = read_config(str(path), "split")
    info = config.get("_pipeline_info")
    if not isinstance(info, dict) or any(type(info.get(key)) is not int for key in _FIELDS):
        raise ConfigError(
            f"{path / 'config.json'} has no _pipeline_info with {', '.join(_FIELDS)}: it was not made by "
            "`zmqpp export`"
        )
    return info, config
