"""What do the answers of all rounds say? Medians over the rounds, of each round's throughput and percentiles."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zmqpp.bench.medians import percentile
from zmqpp.bench.serving.load import Answer

__all__ = ["Figures", "Round", "medians"]


@dataclass(frozen=True)
class Figures:
    """Milliseconds; `tokens_per_s` of output, all requests together."""

    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Figures:
        wall_s = max(answer.arrivals[-1] for answer in answers) - min(answer.asked for answer in answers)
        firsts = [1e3 * answer.first_s for answer in answers]
        gaps = [1e3 * gap for answer in answers for gap in answer.gaps_s]
        return cls(
            tokens_per_s=sum(answer.tokens for answer in answers) / wall_s,
            first_p50_ms=percentile(firsts, 50),
            first_p99_ms=percentile(firsts, 99),
            gap_p50_ms=percentile(gaps, 50),
            gap_p99_ms=percentile(gaps, 99),
        )


@dataclass(frozen=True)
class Round:
    """One turn of one server; `same`: of its answers, how many are the first server's, word for word."""

    index: int
    setup: str
    at_once: int
    figures: Figures
    answers: int
    same: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def medians(rounds: Sequence[Round]) -> Figures:
    """Of each figure over `rounds`, of one setup and one number of requests at once."""
    names = list(asdict(rounds[0].figures))
    return Figures(**{name: statistics.median(getattr(r.figures, name) for r in rounds) for name in names})
