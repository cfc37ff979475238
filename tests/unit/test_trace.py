"""One timeline from several clocks: the ring's own messages bound every offset."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqpp.cli.trace import _write as write_trace
from zmqpp.errors import ConfigError
from zmqpp.watch.clock import Asked, Offset, offsets
from zmqpp.watch.share import share_of_step
from zmqpp.watch.span import ENGINE, Span, StageSpans
from zmqpp.watch.trace import chrome_trace, read_seconds

_US = 1000


class Ring:
    """A simulated pipeline: true times on the engine's clock, told by stages whose clocks are off."""

    def __init__(self, shifts_ns: list[int], seed: int = 1, steps: int = 20, clock: str = "") -> None:
        self.shifts_ns = shifts_ns
        stages = len(shifts_ns)
        self._random = random.Random(seed)
        self.engine = StageSpans(ENGINE, [], host="e", clock="engine", sizes={})
        self.started = [self._asked(i, [], 0, clock) for i in range(stages)]
        spans: list[list[Span]] = [[] for _ in range(stages)]
        now = 10_000 * _US
        for step in range(1, steps + 1):
            sent, came = now, now + self._hop()
            for stage in range(stages):
                begin = sent + (stage + 1) * self._hop()
                got = max(begin, came)
                computed = got + self._random.randrange(200, 3000) * _US
                shift = shifts_ns[stage]
                moments = [("wait", begin, got), ("compute", got, computed)]
                if stage < stages - 1:
                    moments.append(("send", computed, computed + 20 * _US))
                spans[stage] += [Span(kind, step, a + shift, b + shift) for kind, a, b in moments]
                came = computed + self._hop()
            self.engine.spans.append(Span("step", step, sent, came))
            self.engine.sizes[step] = (4, 2)
            now = came + self._hop()
        self.ended = [self._asked(i, spans[i], now, clock) for i in range(stages)]

    def _hop(self) -> int:
        return self._random.randrange(60, 250) * _US

    def _asked(self, stage: int, spans: list[Span], at: int, clock: str) -> Asked:
        there, back = self._random.randrange(100, 9000) * _US, self._random.randrange(100, 9000) * _US
        answer = StageSpans(
            stage,
            spans,
            host=f"h{stage}",
            clock_ns=at + there + self.shifts_ns[stage],
            clock=clock or f"c{stage}",
        )
        return Asked(answer, at, at + there + back)


@given(shifts=st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_the_true_offset_lies_within_what_is_stated(shifts: list[int], seed: int) -> None:
    ring = Ring(shifts, seed)
    for shift, offset in zip(shifts, offsets(ring.engine, ring.started, ring.ended), strict=True):
        assert abs(offset.offset_ns - shift) <= offset.uncertainty_ns
        # Hops take up to 0.25 ms here, the question about the clock up to 18 ms.
        assert offset.uncertainty_ns < 3_000_000 and not offset.is_same_clock


def test_without_steps_the_question_alone_bounds_the_offset() -> None:
    ring = Ring([5_000_000_000, -70_000_000], steps=0)
    for shift, offset in zip(ring.shifts_ns, offsets(ring.engine, ring.started, ring.ended), strict=True):
        assert abs(offset.offset_ns - shift) <= offset.uncertainty_ns < 20_000_000


def test_processes_that_read_the_same_clock_need_no_estimate() -> None:
    ring = Ring([0, 0, 0], clock="engine")
    assert [o.offset_ns for o in offsets(ring.engine, ring.started, ring.ended)] == [0, 0, 0]
    assert all(o.is_same_clock for o in offsets(ring.engine, ring.started, ring.ended))


def test_a_clock_that_claims_to_be_the_same_and_is_not_is_estimated() -> None:
    ring = Ring([0, 7 * 10**9], clock="engine")
    first, second = offsets(ring.engine, ring.started, ring.ended)
    assert first.is_same_clock and not second.is_same_clock
    assert abs(second.offset_ns - 7 * 10**9) <= second.uncertainty_ns


def test_the_trace_has_every_span_of_every_stage_on_the_engines_clock() -> None:
    ring = Ring([10**10, -(10**10), 0], steps=5)
    trace: dict[str, Any] = json.loads(chrome_trace(ring.engine, ring.started, ring.ended))
    events = trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[0] == "engine (e)" and names[2].startswith("stage 1 (h1, clock -")
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 5 + sum(len(asked.answer.spans) for asked in ring.ended)
    assert all(event["dur"] >= 0 and -3000 < event["ts"] < 200_000 for event in spans)
    assert {event["args"]["step"] for event in spans} == {1, 2, 3, 4, 5}
    assert all(event["args"]["tokens"] == 4 for event in spans)
    arrows = [event for event in events if event["ph"] in "sf"]
    assert len(arrows) == 2 * 2 * 5
    assert len(trace["otherData"]["clocks"]) == 3 and trace["otherData"]["steps"] == 5
    for stage in trace["otherData"]["stages"]:
        assert stage["compute"] + stage["wait"] + stage["send"] + stage["idle"] == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["0", "-1", "61", "nan", "five", ""])
def test_a_trace_of_no_time_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="at most 60"):
        read_seconds(text)


def test_a_trace_is_written_where_a_link_leads_and_never_in_place_of_a_device(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_trace(link, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    write_trace(Path("/dev/null"), b"new")
    assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def steps_of_two_stages(moments: list[tuple[int, int]]) -> tuple[StageSpans, list[Asked]]:
    """Each step: 2 ms there, 10 ms of stage 0, 3 ms between, 20 ms of stage 1, 4 ms back, plus `extra` on the way."""
    spans: list[list[Span]] = [[], [], []]
    for step, (at_ms, extra_ms) in enumerate(moments, start=1):
        first, sent = at_ms + 2, at_ms + 12
        got = sent + 3 + extra_ms
        for place, kind, begin, end in (
            (0, "step", at_ms, got + 24),
            (1, "compute", first, sent),
            (1, "send", sent, sent + 1),
            (2, "compute", first, first + 1),
            (2, "wait", first + 1, got),
            (2, "compute", got, got + 20),
        ):
            spans[place].append(Span(kind, step, begin * 1_000_000, end * 1_000_000))
    engine = StageSpans(ENGINE, spans[0], clock="engine")
    return engine, [Asked(StageSpans(i, spans[i + 1], clock="engine"), 0, 10**9) for i in range(2)]


def test_the_share_of_a_step_is_what_lies_between_the_stages_work() -> None:
    alone = [(0, 0), (100, 1), (200, 5)]
    engine, ended = steps_of_two_stages([*alone, (300, 0), (320, 0)])  # the last two overlap
    exact = [Offset(i, 0, 0, 0) for i in range(2)]
    found = share_of_step(engine, ended, exact)
    assert found == {
        "there_ms": 2.0,
        "between_ms": 4.0,
        "back_ms": 4.0,
        "median_ms": 10.0,
        "p99_ms": 14.0,
        "steps": 3,
    }
    later = [Offset(0, 1_000_000, 5, 0), Offset(1, 2_000_000, 5, 0)]
    shifted = share_of_step(engine, ended, later)
    assert shifted is not None
    assert [shifted[f"{name}_ms"] for name in ("there", "between", "back")] == [1.0, 3.0, 6.0]


def test_without_a_step_alone_on_the_ring_there_is_no_share() -> None:
    engine, ended = steps_of_two_stages([(0, 0), (20, 0), (40, 0)])
    exact = [Offset(i, 0, 0, 0) for i in range(2)]
    assert share_of_step(engine, ended, exact) is None
    assert share_of_step(StageSpans(ENGINE, []), ended, exact) is None
