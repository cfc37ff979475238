"""Is zmqpp as fast, beside its peers, as the design demands? The ratios of design.md, section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zmqpp.bench.medians import Turn, median_ratio
from zmqpp.bench.payload import Size

SMALL, MEDIUM, LARGE, HUGE = Size(1, 4096), Size(64, 4096), Size(2048, 4096), Size(8192, 8192)


@dataclass(frozen=True)
class Target:
    """`of`'s measure divided by `to`'s must be at most, or at least, `limit`."""

    of: str
    to: str
    size: Size
    measure: str
    at_most: bool
    limit: float

    @property
    def text(self) -> str:
        what = "round trip" if self.measure == "rtt_p50_us" else "one way"
        return f"{self.of} / {self.to}, {self.size.label} {what}"

    @property
    def wanted(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


TARGETS = (
    Target("zmqpp-shm", "vllm", SMALL, "rtt_p50_us", True, 0.35),
    Target("zmqpp-shm", "vllm", MEDIUM, "rtt_p50_us", True, 0.35),
    Target("zmqpp-shm", "vllm", MEDIUM, "gb_per_s", False, 2.5),
    Target("zmqpp-shm", "memcpy", LARGE, "gb_per_s", False, 1.0),
    Target("zmqpp-tcp", "socket", LARGE, "gb_per_s", False, 0.95),
    Target("zmqpp-tcp", "socket", SMALL, "rtt_p50_us", True, 1.25),
)


@dataclass(frozen=True)
class Verdict:
    target: Target
    ratio: float | None
    """None = one of the two was not measured."""

    @property
    def word(self) -> str:
        if self.ratio is None:
            return "not measured"
        at_most = self.target.at_most
        met = self.ratio <= self.target.limit if at_most else self.ratio >= self.target.limit
        return "met" if met else "missed"

    def as_json(self) -> dict[str, Any]:
        target = self.target
        return {
            "target": target.text,
            "of": target.of,
            "to": target.to,
            "size": str(target.size),
            "measure": target.measure,
            "wanted": target.wanted,
            "ratio": self.ratio,
            "verdict": self.word,
        }


def judge(turns: Sequence[Turn]) -> list[Verdict]:
    return [
        Verdict(target, median_ratio(turns, target.size, target.of, target.to, target.measure))
        for target in TARGETS
    ]
