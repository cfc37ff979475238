"""A timeline of all stages on the engine's clock, for chrome://tracing and ui.perfetto.dev.

One process a stage with its compute, wait and send spans; one for the engine with the steps that were on the
ring; arrows from a send to the wait it ended. Format: "Trace Event Format", JSON object form, by Google.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from zmqpp.errors import ConfigError
from zmqpp.watch.clock import Asked, Offset, offsets
from zmqpp.watch.share import share_of_step
from zmqpp.watch.span import Span, StageSpans

__all__ = ["MAX_SECONDS", "chrome_trace", "read_seconds"]

MAX_SECONDS = 60.0
_COLOURS = {"compute": "good", "wait": "terrible", "send": "bad", "step": "generic_work"}


def read_seconds(text: str) -> float:
    """How long a trace is to take.

    Raises:
        ConfigError: no number, or not within 0..60.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(f"seconds {text}: a trace takes more than 0 and at most {MAX_SECONDS:g} seconds")
    return seconds


def chrome_trace(engine: StageSpans, started: Sequence[Asked], ended: Sequence[Asked]) -> bytes:
    """The trace as JSON.

    Args:
        engine: its "step" spans, from sending a step to having its reply, and the steps' sizes.
        started, ended: every stage's answer to the start and the end of the trace, in stage order.
    """
    clocks = offsets(engine, started, ended)
    stages = [asked.answer for asked in ended]
    origin_ns = min([a.asked_ns for a in started] + [span.begin_ns for span in engine.spans])
    length_ns = min(a.asked_ns for a in ended) - origin_ns
    sheet = _Sheet(engine, origin_ns)
    events = [*sheet.engine()]
    for stage, clock in zip(stages, clocks, strict=True):
        events += sheet.stage(stage, clock)
    for before, after in pairwise(zip(stages, clocks, strict=True)):
        events += sheet.arrows(*before, *after)
    return msgspec.json.encode(
        {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {
                "seconds": length_ns / 1e9,
                "steps": len(engine.spans),
                "share_of_step": share_of_step(engine, ended, clocks),
                "clocks": [_stated(clock) for clock in clocks],
                "stages": [_summary(stage, length_ns) for stage in stages],
            },
        }
    )


class _Sheet:
    """Events on the engine's clock, in microseconds since the trace began."""

    def __init__(self, engine: StageSpans, origin_ns: int) -> None:
        self._engine, self._origin_ns = engine, origin_ns

    def _us(self, time_ns: int, clock: Offset | None) -> float:
        return (time_ns - (clock.offset_ns if clock else 0) - self._origin_ns) / 1000

    def engine(self) -> Iterator[dict[str, Any]]:
        """Steps overlap: each has one of as many rows as there are steps in flight."""
        yield _named(0, f"engine ({self._engine.host})")
        rows: list[int] = []
        for span in sorted(self._engine.spans, key=lambda span: span.begin_ns):
            row = next((i for i, end_ns in enumerate(rows) if end_ns <= span.begin_ns), len(rows))
            rows[row : row + 1] = [span.end_ns]
            yield {**self._event(span, None), "name": f"step {span.step}", "pid": 0, "tid": row}

    def stage(self, stage: StageSpans, clock: Offset) -> Iterator[dict[str, Any]]:
        """One row: a stage does one thing at a time."""
        yield _named(stage.stage + 1, f"stage {stage.stage} ({stage.host}, {describe(clock)})")
        for span in stage.spans:
            yield {**self._event(span, clock), "name": span.kind, "pid": stage.stage + 1, "tid": 0}

    def _event(self, span: Span, clock: Offset | None) -> dict[str, Any]:
        tokens, requests = self._engine.sizes.get(span.step, (0, 0))
        return {
            "ph": "X",
            "cat": span.kind,
            "cname": _COLOURS[span.kind],
            "ts": self._us(span.begin_ns, clock),
            "dur": (span.end_ns - span.begin_ns) / 1000,
            "args": {"step": span.step, "tokens": tokens, "requests": requests},
        }

    def arrows(
        self, before: StageSpans, its_clock: Offset, after: StageSpans, clock: Offset
    ) -> Iterator[dict[str, Any]]:
        """From the moment a stage begins to send a step's activations to the moment the next one has them."""
        sent = {span.step: span.begin_ns for span in before.spans if span.kind == "send"}
        for span in after.spans:
            if span.kind == "wait" and span.step in sent:
                same = {"name": "activations", "cat": "hop", "tid": 0, "id": f"{span.step}.{after.stage}"}
                left, came = self._us(sent[span.step], its_clock), self._us(span.end_ns, clock)
                yield {**same, "ph": "s", "pid": before.stage + 1, "ts": left}
                yield {**same, "ph": "f", "bp": "e", "pid": after.stage + 1, "ts": came}


def _named(pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}


def describe(clock: Offset) -> str:
    """Such as "the engine's clock", or "clock +1.204 ms +- 0.080 ms"."""
    if clock.is_same_clock:
        return "the engine's clock"
    return f"clock {clock.offset_ns / 1e6:+.3f} ms +- {clock.uncertainty_ns / 1e6:.3f} ms"


def _stated(clock: Offset) -> dict[str, Any]:
    return {
        "stage": clock.stage,
        "offset_us": clock.offset_ns / 1000,
        "uncertainty_us": clock.uncertainty_ns / 1000,
        "estimated_us": clock.estimated_ns / 1000,
        "same_clock": clock.is_same_clock,
    }


def _summary(stage: StageSpans, length_ns: int) -> dict[str, Any]:
    """Where the stage's time went, as shares of the whole trace."""
    spent: Counter[str] = Counter()
    for span in stage.spans:
        spent[span.kind] += span.end_ns - span.begin_ns
    shares = {kind: min(1.0, spent[kind] / max(1, length_ns)) for kind in ("compute", "wait", "send")}
    return {"stage": stage.stage, "host": stage.host, **shares, "idle": max(0.0, 1 - sum(shares.values()))}
