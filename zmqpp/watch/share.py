"""What a step costs beyond computing: encoding, hops, decoding, wake-ups and bookkeeping between the stages' work.

Of steps that were alone on the ring, so that none had to wait for another one:

    there    from the engine's first touch of the step until stage 0 begins it
    between  from a stage's handing its activations over until the next one has them, all hops together
    back     from the last stage's last computing until the engine holds the output

A hop between clocks that differ is as uncertain as their offsets are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from zmqpp.watch.clock import Asked, Moments, Offset
from zmqpp.watch.span import Span, StageSpans

__all__ = ["share_of_step"]


def share_of_step(
    engine: StageSpans, ended: Sequence[Asked], clocks: Sequence[Offset]
) -> dict[str, float] | None:
    """Milliseconds a step: medians of `there`, `between`, `back` and of all three, `p99` of these; None of no step.

    Args:
        engine: its "step" spans. ended: every stage's spans, in stage order. clocks: theirs.
    """
    stages = [Moments(asked.answer.spans) for asked in ended]
    parts = [found for span in _alone(engine.spans) if (found := _parts(span, stages, clocks)) is not None]
    if not parts:
        return None
    sums = sorted(sum(part) for part in parts)
    names = zip(("there", "between", "back"), zip(*parts, strict=True), strict=True)
    return {
        **{f"{name}_ms": median(values) / 1e6 for name, values in names},
        "median_ms": median(sums) / 1e6,
        "p99_ms": sums[min(len(sums) - 1, len(sums) * 99 // 100)] / 1e6,
        "steps": len(sums),
    }


def _alone(spans: Sequence[Span]) -> Iterator[Span]:
    """Those that no other one overlaps."""
    ordered = sorted(spans, key=lambda span: span.begin_ns)
    free_ns = 0
    for span, after in pairwise([*ordered, None]):
        if span is None:
            continue
        if span.begin_ns >= free_ns and (after is None or after.begin_ns >= span.end_ns):
            yield span
        free_ns = max(free_ns, span.end_ns)


def _parts(span: Span, stages: Sequence[Moments], clocks: Sequence[Offset]) -> tuple[int, int, int] | None:
    step = span.step
    if any(step not in stage.begin for stage in stages):
        return None
    hops = [
        (after.got[step] - theirs.offset_ns) - (before.sent[step] - own.offset_ns)
        for (before, own), (after, theirs) in pairwise(zip(stages, clocks, strict=True))
        if step in before.sent and step in after.got
    ]
    if len(hops) < len(stages) - 1:
        return None
    there = stages[0].begin[step] - clocks[0].offset_ns - span.begin_ns
    back = span.end_ns - (stages[-1].end[step] - clocks[-1].offset_ns)
    return there, sum(hops), back
