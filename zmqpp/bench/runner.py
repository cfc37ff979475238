"""In what order is everything measured, so that a machine that drifts is fair to all? Rounds of short turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from zmqpp.bench.channel import PeerFailed
from zmqpp.bench.device import CPU
from zmqpp.bench.medians import Turn, percentile
from zmqpp.bench.near import Near
from zmqpp.bench.overlapped import Together
from zmqpp.bench.payload import Mismatch, Size
from zmqpp.bench.peers import limit_of
from zmqpp.bench.transport import Unavailable
from zmqpp.bench.turn import Stream, Trips

HUGE_BYTES = 100_000_000
_TRIES = 3
"""Trips of the first estimate, which also brings shared segments and rings of slots into memory."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long a turn takes."""

    transports: tuple[str, ...]
    sizes: tuple[Size, ...]
    rounds: int = 5
    huge_rounds: int = 2
    """Rounds in which dicts from 100 MB take part."""
    trips_s: float = 0.25
    stream_s: float = 0.35
    least_trips: int = 4
    least_dicts: int = 6
    device: torch.device = CPU
    far_device: torch.device = CPU

    def as_json(self) -> dict[str, Any]:
        names = ("rounds", "huge_rounds", "trips_s", "stream_s", "least_trips", "least_dicts")
        return {
            "transports": list(self.transports),
            "sizes": [str(size) for size in self.sizes],
            "device": str(self.device),
            "far_device": str(self.far_device),
            **{name: getattr(self, name) for name in names},
        }


@dataclass
class Findings:
    """All of a run."""

    turns: list[Any] = field(default_factory=list)
    """Turn; of `overlap`, Overlap."""
    remarks: dict[str, str] = field(default_factory=dict)
    """transport -> what it says about itself."""
    missing: dict[str, str] = field(default_factory=dict)
    """transport -> why it could not be measured, or not to the end."""
    checked_dicts: int = 0
    checked_bytes: int = 0
    wall_s: float = 0.0

    def count_checks(self, part: Trips | Stream | Together) -> None:
        self.checked_dicts += part.checked_dicts
        self.checked_bytes += part.checked_bytes


class Runner:
    """Opens every transport once, measures them in turns, closes them.

    A transport that fails is left out from then on, with its reason. Bytes that differ end the run.

    Args:
        say: hears what happens, a line at a time.
        prefix: in front of the names, for the near and far process.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None], prefix: str = "") -> None:
        self._plan = plan
        self._say = say
        self._prefix = prefix
        self._findings = Findings()
        self._trip_s: dict[tuple[str, Size], float] = {}
        self._dict_s: dict[tuple[str, Size], float] = {}
        self._device_bytes: dict[str, int] = {}

    def run(self) -> Findings:
        """Raises Mismatch; PeerFailed if the far process ended."""
        started = time.monotonic()
        with Near(self._plan.device, self._plan.far_device) as near:
            if self._plan.device != CPU:
                near.ready(self._plan.sizes[0])
            for name in self._plan.transports:
                self._guard(near, name, self._open)
            self._say(f"opened after {time.monotonic() - started:.0f} s")
            for index in range(self._plan.rounds):
                self._round(near, index)
                self._say(
                    f"round {index + 1} of {self._plan.rounds} after {time.monotonic() - started:.0f} s"
                )
        self._findings.wall_s = time.monotonic() - started
        return self._findings

    def _round(self, near: Near, index: int) -> None:
        names = [name for name in self._plan.transports if name not in self._findings.missing]
        turned = names[index % len(names) :] + names[: index % len(names)] if names else []
        for size in self._plan.sizes:
            if size.dict_bytes >= HUGE_BYTES and index >= self._plan.huge_rounds:
                continue
            for name in turned:
                if name not in self._findings.missing:
                    self._guard(
                        near, name, lambda near, name, size=size: self._measured(near, name, size, index)
                    )

    def _measured(self, near: Near, name: str, size: Size, index: int) -> None:
        """A turn. In the first round with what it takes of the device's memory and keeps, in both processes.

        In the first alone, because caches are emptied for it.
        """
        if index or self._plan.device == CPU:
            self._turn(near, name, size, index)
            return
        near.ready(size)
        before = near.device_bytes()
        self._turn(near, name, size, index)
        held = self._device_bytes.get(name, 0) + near.device_bytes() - before
        self._device_bytes[name] = held
        self._findings.turns[-1] = dataclasses.replace(self._findings.turns[-1], device_bytes=held)

    def _guard(self, near: Near, name: str, act: Callable[[Near, str], None]) -> None:
        """A transport that fails does not take the others along."""
        try:
            act(near, name)
            return
        except Mismatch as error:
            raise Mismatch(f"{name}: {error}") from None
        except Unavailable as error:
            why = str(error)
        except Exception as error:
            if not near.is_alive():
                raise PeerFailed(f"the far process ended while {name} was measured: {error}") from None
            why = f"{type(error).__name__}: {error}"
        why = " ".join(why.split())
        self._findings.missing[name] = why
        self._say(f"{name}: not available: {why}")
        try:
            near.close(self._prefix + name)
        except Exception:  # it has failed already
            pass

    def _open(self, near: Near, name: str) -> None:
        if limit_of(name):
            return
        before = 0 if self._plan.device == CPU else near.device_bytes()
        if remark := near.open(self._prefix + name):
            self._findings.remarks[name] = remark
        if self._plan.device != CPU:
            self._device_bytes[name] = near.device_bytes() - before

    def _turn(self, near: Near, name: str, size: Size, index: int) -> None:
        limit = limit_of(name)
        if limit:
            trips, stream = (
                None,
                limit(near.payloads(size), self._dicts(name, size), self._plan.far_device),
            )
        else:
            key = self._prefix + name
            if (name, size) not in self._trip_s:
                self._note_trips(name, size, near.trips(key, size, _TRIES))
            trips = near.trips(key, size, self._trips(name, size))
            self._note_trips(name, size, trips)
            stream = near.stream(key, size, self._dicts(name, size))
        self._dict_s[name, size] = stream.wall_s / stream.dicts
        self._findings.count_checks(stream)
        self._findings.turns.append(Turn.of(index, name, size, trips, stream))

    def _note_trips(self, name: str, size: Size, trips: Trips) -> None:
        self._trip_s[name, size] = percentile(trips.times_us, 50) / 1e6
        self._findings.count_checks(trips)

    def _trips(self, name: str, size: Size) -> int:
        return self._count(size, self._plan.trips_s, self._plan.least_trips, self._trip_s[name, size])

    def _dicts(self, name: str, size: Size) -> int:
        """As many as fill the time; before the first stream, a trip is taken for two dicts one way."""
        guess = self._dict_s.get((name, size)) or self._trip_s.get((name, size), size.dict_bytes / 5e9) / 2
        return self._count(size, self._plan.stream_s, self._plan.least_dicts, guess)

    def _count(self, size: Size, seconds: float, least: int, each_s: float) -> int:
        if size.dict_bytes >= HUGE_BYTES:
            least = max(2, least // 2)
        return max(least, min(100_000, int(seconds / each_s)))
