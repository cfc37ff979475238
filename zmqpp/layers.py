"""Layer ranges: half-open, `8-16` is layers 8..15, as vLLM's `start_layer, end_layer`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zmqpp.errors import LayerRangeError

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


@dataclass(frozen=True, order=True)
class LayerRange:
    """Layers `start` .. `end - 1` of a model; never empty."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """Read `A-B`.

        Raises:
            LayerRangeError: not two numbers joined by `-`, or `A >= B`.
        """
        match = _RANGE.fullmatch(text)
        if match is None:
            raise LayerRangeError(
                f"layer range {text!r} is not of the form A-B, for example 8-16 (layers 8..15)"
            )
        start, end = int(match[1]), int(match[2])
        if start >= end:
            raise LayerRangeError(
                f"layer range {start}-{end} is empty: the end is exclusive and must be above the start, "
                f"for example {start}-{start + 1}"
            )
        return cls(start, end)

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def check_within(self, total_layers: int, stage: int) -> None:
        """Raise LayerRangeError when the range reaches beyond the model."""
        if self.end > total_layers:
            raise LayerRangeError(
                f"stage {stage}: layer range {self} exceeds the model, which has {total_layers} layers"
            )


def parse_ranges(texts: Iterable[str]) -> list[LayerRange]:
    """`["0-3", "3-8"]` or `["0-3,3-8"]`, as people give them.

    Raises:
        LayerRangeError: see `LayerRange.parse`.
    """
    return [LayerRange.parse(part) for text in texts for part in text.split(",")]


def even_ranges(total_layers: int, stages: int) -> list[LayerRange]:
    """vLLM's even split: what does not divide goes to the stages before the last.

    Source: vllm/distributed/utils.py get_pp_indices.
    """
    if stages > total_layers:
        raise LayerRangeError(
            f"{stages} stages cannot share {total_layers} layers: every stage needs at least one; "
            f"use at most {total_layers} stages"
        )
    sizes = [total_layers // stages] * stages
    for i in range(2, total_layers % stages + 2):
        sizes[-i] += 1
    ranges, start = [], 0
    for size in sizes:
        ranges.append(LayerRange(start, start + size))
        start += size
    return ranges


def check_contiguous(ranges: Mapping[int, LayerRange] | Sequence[LayerRange], total_layers: int) -> None:
    """Check that the stages' ranges cover every layer exactly once, in stage order.

    Raises:
        LayerRangeError: names the overlap or the gap, and the two stages concerned.
    """
    ordered = [ranges[i] for i in range(len(ranges))]
    for stage, layers in enumerate(ordered):
        layers.check_within(total_layers, stage)
    if ordered[0].start != 0:
        raise LayerRangeError(
            f"gap: stage 0 starts at layer {ordered[0].start}; layers 0-{ordered[0].start} belong to no stage"
        )
    for stage in range(1, len(ordered)):
        before, here = ordered[stage - 1], ordered[stage]
        between = f"stage {stage - 1} ({before}) and stage {stage} ({here})"
        if here.start < before.end:
            raise LayerRangeError(
                f"overlap: {between} both hold layers {here.start}-{min(before.end, here.end)}"
            )
        if here.start > before.end:
            raise LayerRangeError(f"gap: layers {before.end}-{here.start} lie between {between}, on no stage")
    if ordered[-1].end != total_layers:
        raise LayerRangeError(
            f"gap: the last stage ({len(ordered) - 1}) ends at layer {ordered[-1].end}; "
            f"layers {ordered[-1].end}-{total_layers} belong to no stage"
        )
