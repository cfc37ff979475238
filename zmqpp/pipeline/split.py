"""A model split into one directory a stage, as `zmqpp export` leaves it: `stage_0` .. `stage_{N-1}`."""

from __future__ import annotations

import re
from pathlib import Path

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous
from zmqpp.pipeline.model_config import read_config

__all__ = ["Split", "read_split"]

_STAGE = re.compile(r"stage_(\d+)")
_INFO = "_pipeline_info"
_WANTED = ("stage_idx", "total_stages", "start_layer", "end_layer")


class Split:
    """The stages' folders and ranges, in stage order."""

    def __init__(self, folder: Path, models: list[Path], ranges: list[LayerRange]) -> None:
        self.folder, self.models, self.ranges = folder, models, ranges

    def __len__(self) -> int:
        return len(self.models)


def read_split(folder: Path, stages: int | None = None, flag: str = "--pipeline-dir") -> Split:
    """Find the stages in `folder` and check that they make up one model.

    Args:
        stages: how many there must be; None: as many as there are.
    Raises:
        ConfigError: no such folder, a stage missing, an export that is not finished, or stages of different exports.
    """
    if not folder.is_dir():
        raise ConfigError(f"{flag} {folder}: no such folder")
    found = {int(match[1]): path for path in folder.iterdir() if (match := _STAGE.fullmatch(path.name))}
    if not found:
        hint = (
            "it is a model: give it as MODEL"
            if (folder / "config.json").is_file()
            else "make one with `zmqpp export`"
        )
        raise ConfigError(f"{flag} {folder}: there is no stage_0 in it; {hint}")
    total = _total(folder, found[min(found)], flag)
    missing = [index for index in range(total) if index not in found]
    if missing:
        raise ConfigError(
            f"{flag} {folder}: it was exported as {total} stages, stage_{missing[0]} is missing; export it again"
        )
    if stages is not None and stages != total:
        raise ConfigError(
            f"{flag} {folder}: it holds {total} stages, not {stages}; leave the number out, or export it again"
        )
    models = [found[index] for index in range(total)]
    return Split(folder, models, _ranges(models, total, flag))


def _total(folder: Path, first: Path, flag: str) -> int:
    if any(folder.glob(".stage_*")) and not (folder / "pipeline.json").exists():
        raise ConfigError(
            f"{flag} {folder}: the export into it is not finished; run the same `zmqpp export` again, it goes on"
        )
    return int(_pipeline_info(first, flag)["total_stages"])


def _pipeline_info(model: Path, flag: str) -> dict[str, int]:
    info = read_config(str(model), flag).get(_INFO)
    if not isinstance(info, dict) or any(type(info.get(key)) is not int for key in _WANTED):
        raise ConfigError(
            f"{flag} {model}: its config.json has no {_INFO} with {', '.join(_WANTED)}; export it again"
        )
    return info


def _ranges(models: list[Path], total: int, flag: str) -> list[LayerRange]:
    ranges = []
    for index, model in enumerate(models):
        info = _pipeline_info(model, flag)
        if (info["stage_idx"], info["total_stages"]) != (index, total):
            raise ConfigError(
                f"{flag} {model}: exported as stage {info['stage_idx']} of {info['total_stages']}, but it lies where "
                f"stage {index} of {total} belongs; export it again"
            )
        ranges.append(LayerRange.parse(f"{info['start_layer']}-{info['end_layer']}"))
    check_contiguous(ranges, ranges[-1].end)
    return ranges
