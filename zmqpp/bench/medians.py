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
    device_bytes: int | None = None
    """Of a GPU's memory: what the transport holds by then, in both processes. None = not looked at."""

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
    device_bytes: int | None = None

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
            device_bytes=max(
                (held for turn in group if (held := turn.device_bytes) is not None), default=None
            ),
        )
        for (transport, size), group in grouped.items()
    ]


def median_ratio(
    turns: Iterable[Turn], size: Size, of: str, to: str | tuple[str, ...], measure: str
) -> float | None:
    """The median over the rounds of one transport's `measure` divided by another's in the same round.

    A machine that is slower for a while is so for both of a round; None = there is no such round.

    Args:
        to: of several, the least: of throughputs, the slowest. All must have been measured.
    """
    bases = {to} if isinstance(to, str) else set(to)
    ours: dict[int, float | None] = {}
    theirs: dict[int, list[float]] = {}
    for turn in turns:
        if turn.size != size:
            continue
        value = getattr(turn, measure)
        if turn.transport == of:
            ours[turn.round] = value
        elif turn.transport in bases and value:
            theirs.setdefault(turn.round, []).append(value)
    ratios = [
        value / min(base)
        for index, value in ours.items()
        if value and len(base := theirs.get(index, [])) == len(bases)
    ]
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
