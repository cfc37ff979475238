"""How far each stage's clock is from the engine's: bounds that the messages of the ring give, without extra ones.

Nothing arrives before it was sent. With `offset[i]` = clock of stage i - clock of the engine, at one moment:

    asked, answered      asked <= clock - offset[i] <= answered             at the start and the end of a trace
    exec                 the engine sends a step before stage i begins it
    activations          stage i begins to send them before stage i+1 has them
    reply                the last stage ends a step before the engine has the reply

The tightest of each over all steps bound every offset from both sides, mostly within a few hops' time.
The method is that of one-way message bounds; compare RFC 5905, section 8, which needs both ways of one link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zmqpp.watch.span import Span, StageSpans

__all__ = ["Asked", "Moments", "Offset", "offsets"]


@dataclass(frozen=True)
class Asked:
    """A stage's answer, and when on its own clock the engine asked and had it."""

    answer: StageSpans
    asked_ns: int
    answered_ns: int


@dataclass(frozen=True)
class Offset:
    """Add `-offset_ns` to a stage's clock to get the engine's; the truth lies within +- `uncertainty_ns`."""

    stage: int
    offset_ns: int
    uncertainty_ns: int
    estimated_ns: int
    """What the ring's messages say; `offset_ns` is 0 instead where both read the very same clock."""

    @property
    def is_same_clock(self) -> bool:
        return self.uncertainty_ns == 0


class Moments:
    """Moments of one stage's steps that others' moments are compared with."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.begin: dict[int, int] = {}
        self.end: dict[int, int] = {}
        """Of what it does before it hands anything over."""
        self.got: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        for span in spans:
            self.begin.setdefault(span.step, span.begin_ns)
            self.end[span.step] = span.end_ns
            if span.kind == "wait":
                self.got[span.step] = span.end_ns
            elif span.kind == "send":
                # The last one of a step: earlier ones wait for the step before.
                self.sent[span.step] = span.begin_ns
        self.end.update(self.sent)


def offsets(engine: StageSpans, started: Sequence[Asked], ended: Sequence[Asked]) -> list[Offset]:
    """The offset of every stage, in stage order."""
    there = {span.step: span for span in engine.spans}
    steps = [Moments(asked.answer.spans) for asked in ended]
    lows, highs = [], []
    for asked_at, stage in zip(zip(started, ended, strict=True), steps, strict=True):
        lows.append(max(a.answer.clock_ns - a.answered_ns for a in asked_at))
        begun = [begin - there[step].begin_ns for step, begin in stage.begin.items() if step in there]
        highs.append(min([a.answer.clock_ns - a.asked_ns for a in asked_at] + begun))
    lows[-1] = max(
        [lows[-1]] + [end - there[step].end_ns for step, end in steps[-1].end.items() if step in there]
    )
    _tighten(lows, highs, [_least(a.sent, b.got) for a, b in pairwise(steps)])
    return [
        _offset(engine, asked.answer, low, high) for asked, low, high in zip(ended, lows, highs, strict=True)
    ]


def _least(sent: Mapping[int, int], got: Mapping[int, int]) -> int | None:
    """The least of "had" - "sent" over the steps known on both sides: no less than the offsets' difference."""
    return min((got[step] - sent[step] for step in sent.keys() & got.keys()), default=None)


def _tighten(lows: list[int], highs: list[int], hops: Sequence[int | None]) -> None:
    """offset[i+1] - offset[i] <= hops[i], passed on along the chain in both directions."""
    for i, hop in enumerate(hops):
        if hop is not None:
            highs[i + 1] = min(highs[i + 1], highs[i] + hop)
    for i, hop in reversed(list(enumerate(hops))):
        if hop is not None:
            lows[i] = max(lows[i], lows[i + 1] - hop)


def _offset(engine: StageSpans, stage: StageSpans, low: int, high: int) -> Offset:
    estimate, uncertainty = (low + high) // 2, abs(high - low) // 2 + 1
    if stage.clock == engine.clock and abs(estimate) <= uncertainty:
        return Offset(stage.stage, 0, 0, estimate)
    return Offset(stage.stage, estimate, uncertainty, estimate)
