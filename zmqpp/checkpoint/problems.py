"""Everything that is wrong with a set of layer ranges, not only the first thing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, pairwise

from zmqpp.layers import LayerRange

_NUMBERS = re.compile(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*")
_LONGEST = 100_000
"""No model has more layers; beyond it layers are not counted one by one."""


def read_ranges(texts: Sequence[str]) -> tuple[dict[int, LayerRange], list[str]]:
    """Stage -> range of those that can be read, and what is wrong with the others."""
    ranges, problems = {}, []
    for stage, text in enumerate(texts):
        match = _NUMBERS.fullmatch(text)
        if match and int(match[1]) > int(match[2]):
            problems.append(f"stage {stage}: {text} is reversed: give it as {match[2]}-{match[1]}")
            continue
        try:
            ranges[stage] = LayerRange.parse(text)
        except ValueError as error:
            problems.append(f"stage {stage}: {error}")
    return ranges, problems


def range_problems(texts: Sequence[str], total_layers: int) -> list[str]:
    """All problems of the ranges of stages 0, 1, .. of a model with `total_layers`; empty when they are valid."""
    ranges, problems = read_ranges(texts)
    if len(texts) > total_layers:
        problems.append(
            f"{len(texts)} stages cannot share {total_layers} layers: every stage needs at least one; "
            f"use at most {total_layers} stages"
        )
    for stage, layers in ranges.items():
        if layers.end > total_layers:
            problems.append(
                f"stage {stage}: layer range {layers} exceeds the model, which has {total_layers} layers"
            )
    problems += _overlaps(ranges) + _disorder(ranges)
    if len(ranges) == len(texts):  # What an unreadable range covers is not known.
        problems += _gaps(ranges, min(total_layers, _LONGEST))
    return problems


def _overlaps(ranges: dict[int, LayerRange]) -> list[str]:
    found = []
    for (i, one), (j, other) in combinations(ranges.items(), 2):
        start, end = max(one.start, other.start), min(one.end, other.end)
        if start < end:
            found.append(f"overlap: stage {i} ({one}) and stage {j} ({other}) both hold layers {start}-{end}")
    return found


def _disorder(ranges: dict[int, LayerRange]) -> list[str]:
    found = []
    stages = sorted(ranges)
    for before, here in pairwise(stages):
        if ranges[here].start < ranges[before].start:
            found.append(
                f"order: stage {here} ({ranges[here]}) lies before stage {before} ({ranges[before]}); "
                f"give the ranges in the order of the layers"
            )
    return found


def _gaps(ranges: dict[int, LayerRange], total_layers: int) -> list[str]:
    found, position, last = [], 0, ""
    for stage, layers in sorted(ranges.items(), key=lambda item: item[1]):
        start = min(layers.start, total_layers)
        if position < start:
            found.append(_gap(position, start, last, f"stage {stage} ({layers})"))
        if layers.end > position:
            position, last = layers.end, f"stage {stage} ({layers})"
    if position < total_layers:
        found.append(_gap(position, total_layers, last, ""))
    return found


def _gap(start: int, end: int, before: str, after: str) -> str:
    if before and after:
        where = f"between {before} and {after}"
    elif before or after:
        where = f"after {before}, the last one" if before else f"before {after}, the first one"
    else:
        where = "there are no ranges"
    return f"gap: layers {start}-{end} are on no stage: {where}"
