"""How do the rounds of one run become one figure? Medians, of each round's own percentiles and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zmqpp.bench.payload import Size
from zmqpp.bench.turn import Stream, Trips


@dataclass(frozen=True)
class Turn:
    """One transport at one size in one round; None where it has no such measure (memcpy: no round trip)."""

    round: int
    transport: str
    size: Size
    trips: int
    rtt_p50_us: float | None
    rtt_p99_us: float | None
    dicts: int
    gb_per_s: float
    cpu_s_per_gb: float

    @classmethod
    def of(cls, round_index: int, transport: str, size: Size, trips: Trips | None, stream: Stream) -> Turn:
        times = trips.times_us if trips else []
        return cls(
            round=round_index,
            transport=transport,
            size=size,
            trips=len(times),
            rtt_p50_us=percentile(times, 50) if times else None,
            rtt_p99_us=percentile(times, 99) if times else None,
            dicts=stream.dicts,
            gb_per_s=stream.bytes_moved / 1e9 / stream.wall_s,
            cpu_s_per_gb=stream.cpu_s / (stream.bytes_moved / 1e9),
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": str(self.size)}


@dataclass(frozen=True)
class Row:
    """One transport at one size: the medians over its rounds."""

    transport: str
    size: Size
    rounds: int
    rtt_p50_us: float | None
    rtt_p99_us: float | None
    gb_per_s: float
    cpu_s_per_gb: float

    def as_json(self) -> dict[str, Any]:
        size = self.size
        return {**asdict(self), "size": str(size), "label": size.label, "dict_bytes": size.dict_bytes}


def rows_of(turns: Iterable[Turn]) -> list[Row]:
    """In the order in which they were first measured."""
    grouped: dict[tuple[str, Size], list[Turn]] = {}
    for turn in turns:
        grouped.setdefault((turn.transport, turn.size), []).append(turn)
    return [
        Row(
            transport=transport,
            size=size,
            rounds=len(group),
            rtt_p50_us=_median(turn.rtt_p50_us for turn in group),
            rtt_p99_us=_median(turn.rtt_p99_us for turn in group),
            gb_per_s=statistics.median(turn.gb_per_s for turn in group),
            cpu_s_per_gb=statistics.median(turn.cpu_s_per_gb for turn in group),
        )
        for (transport, size), group in grouped.items()
    ]


def median_ratio(turns: Iterable[Turn], size: Size, of: str, to: str, measure: str) -> float | None:
    """The median over the rounds of one transport's `measure` divided by another's in the same round.

    A machine that is slower for a while is so for both of a round; None = there is no such round.
    """
    ours: dict[int, float | None] = {}
    theirs: dict[int, float | None] = {}
    for turn in turns:
        if turn.size == size and turn.transport in (of, to):
            (ours if turn.transport == of else theirs)[turn.round] = getattr(turn, measure)
    ratios = [value / base for index, value in ours.items() if value and (base := theirs.get(index))]
    return statistics.median(ratios) if ratios else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between the two nearest ranks."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
