"""Is zmqpp as fast, beside its peers, as the design demands? The ratios of design.md, section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zmqpp.bench.medians import Turn, median_ratio
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import COPY_ACROSS, COPY_IN, COPY_OUT

SMALL, MEDIUM, LARGE, HUGE = Size(1, 4096), Size(64, 4096), Size(2048, 4096), Size(8192, 8192)


@dataclass(frozen=True)
class Target:
    """`of`'s measure divided by `to`'s must be at most, or at least, `limit`. Of several `to`: the slowest's."""

    of: str
    to: str | tuple[str, ...]
    size: Size
    measure: str
    at_most: bool
    limit: float

    @property
    def text(self) -> str:
        what = "round trip" if self.measure == "rtt_p50_us" else "one way"
        return f"{self.of} / {self._base}, {self.size.label} {what}"

    @property
    def wanted(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.text,
            "of": self.of,
            "to": self.to,
            "size": str(self.size),
            "measure": self.measure,
            "wanted": self.wanted,
        }

    @property
    def _base(self) -> str:
        return self.to if isinstance(self.to, str) else f"slowest of {', '.join(self.to)}"


TARGETS = (
    Target("zmqpp-shm", "vllm", SMALL, "rtt_p50_us", True, 0.35),
    Target("zmqpp-shm", "vllm", MEDIUM, "rtt_p50_us", True, 0.35),
    Target("zmqpp-shm", "vllm", MEDIUM, "gb_per_s", False, 2.5),
    Target("zmqpp-shm", "memcpy", LARGE, "gb_per_s", False, 1.0),
    Target("zmqpp-tcp", "socket", LARGE, "gb_per_s", False, 0.95),
    Target("zmqpp-tcp", "socket", SMALL, "rtt_p50_us", True, 1.25),
)
CUDA_TARGETS = (
    Target("zmqpp-shm", (COPY_OUT, COPY_IN), LARGE, "gb_per_s", False, 0.9),
    Target("zmqpp-cuda_ipc", COPY_ACROSS, LARGE, "gb_per_s", False, 0.9),
    Target("zmqpp-cuda_ipc", "nccl", LARGE, "gb_per_s", False, 1.0),
)
"""For tensors of an H200."""


class Judged(Protocol):
    """What a verdict is about."""

    @property
    def at_most(self) -> bool: ...
    @property
    def limit(self) -> float: ...
    @property
    def text(self) -> str: ...
    @property
    def wanted(self) -> str: ...
    def as_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Verdict:
    target: Judged
    ratio: float | None
    """None = one of those it is made of was not measured."""

    @property
    def word(self) -> str:
        if self.ratio is None:
            return "not measured"
        at_most = self.target.at_most
        met = self.ratio <= self.target.limit if at_most else self.ratio >= self.target.limit
        return "met" if met else "missed"

    def as_json(self) -> dict[str, Any]:
        return {**self.target.as_json(), "ratio": self.ratio, "verdict": self.word}


def judge(turns: Sequence[Turn], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    return [
        Verdict(target, median_ratio(turns, target.size, target.of, target.to, target.measure))
        for target in targets
    ]
