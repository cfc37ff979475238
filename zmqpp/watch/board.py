"""The engine's picture of its pipeline: made of what stages report and of the steps it sends and gets back.

Steps are noted in passing, without the lock, and counted when there is time for it, or when somebody asks.

Thread: any; one lock, never held while anything waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from zmqpp.watch.rates import Sample, recent, share_idle
from zmqpp.watch.report import StageReport
from zmqpp.watch.span import ENGINE, MAX_SPANS, Span, StageSpans
from zmqpp.watch.status import Event, PipelineStatus, Spent, StageStatus

__all__ = ["Board"]

WINDOW_S = 3.0
"""Over which rates are taken."""
_LEAST_WINDOW_S = 1.0
_EVENTS = 100
_KNOCKING_S = 60.0
_NS = 1e-9


@dataclass
class _Flight:
    """Steps on the ring, and for how long there was at least one."""

    sent_step: int = 0
    sent_ns: dict[int, int] = field(default_factory=dict)
    busy_ns: int = 0
    since_ns: int = 0

    @property
    def on_ring(self) -> int:
        return len(self.sent_ns)

    def send(self, step: int, now_ns: int) -> None:
        self.sent_step = step
        if not self.sent_ns:
            self.since_ns = now_ns
        self.sent_ns[step] = now_ns

    def finish(self, step: int, now_ns: int) -> int:
        """When the step was sent."""
        sent_ns = self.sent_ns.pop(step)
        if not self.sent_ns:
            self.busy_ns += now_ns - self.since_ns
        return sent_ns

    def busy_until(self, now_ns: int) -> int:
        return self.busy_ns + (now_ns - self.since_ns if self.on_ring else 0)


class Board:
    """Collects; `status()` is everything known now."""

    def __init__(self, stages: int, model: str = "", session: str = "") -> None:
        now = time.time()
        self.stages = stages
        self._lock = threading.Lock()
        self._status = PipelineStatus(
            state="starting",
            since=now,
            stages=[StageStatus(index, since=now) for index in range(stages)],
            model=model,
            total_stages=stages,
            session=session,
        )
        self._flight = _Flight()
        self._busy_since_ns = self._last_step_ns = 0
        self._samples: list[deque[Sample]] = [deque() for _ in range(stages)]
        self._generated: deque[tuple[int, int]] = deque()
        self._trace: StageSpans | None = None
        self._refused: dict[int, float] = {}
        """When a stage's refused peers were an event last."""
        self.version = 0
        """Grows with every change, so that whoever publishes need not compare."""
        self._noted: deque[tuple[int, int, int, int | None]] = deque()
        """Of steps sent and finished, not counted yet: step, when, tokens, and of one that is sent its requests."""

    # ---- states ------------------------------------------------------------------------------------------

    def stage(self, index: int) -> StageStatus:
        """To fill in what is known of a stage before it runs. Thread: before the ring is watched."""
        return self._status.stages[index]

    def set_states(self, state: str, *, pipeline: str | None = None) -> None:
        """All stages have come to `state`; the pipeline itself to `pipeline`, if given."""
        now = time.time()
        with self._lock:
            self.version += 1
            for stage in self._status.stages:
                stage.state, stage.since = state, now
            if pipeline is not None:
                self._status.state, self._status.since = pipeline, now
                self._note(Event(now, pipeline, f"all {len(self._status.stages)} stages are {state}"))

    def fail(self, reason: str, index: int | None) -> None:
        """Stage `index` (None: no stage alone) ended the pipeline."""
        now = time.time()
        with self._lock:
            self.version += 1
            self._status.state, self._status.since, self._status.reason = "failed", now, reason
            if index is not None:
                self._status.losses += 1
                stage = self._status.stages[index]
                stage.state, stage.since, stage.reason = "lost", now, reason
            self._note(Event(now, "lost" if index is not None else "failed", reason, index))

    def lose(self, reason: str, index: int) -> bool:
        """Stage `index` is gone; the pipeline waits for it. False: it was lost already, which counts once."""
        now = time.time()
        with self._lock:
            self.version += 1
            status = self._status
            status.state, status.since, status.reason = "recovering", now, reason
            stage = status.stages[index]
            if stage.state == "lost":
                return False
            status.losses += 1
            stage.state, stage.since, stage.reason = "lost", now, reason
            self._note(Event(now, "lost", reason, index))
            return True

    def recover(self, seconds: float) -> None:
        """All stages are there again."""
        now = time.time()
        with self._lock:
            self.version += 1
            status = self._status
            status.state, status.since, status.reason = "ready", now, ""
            status.recoveries += 1
            for stage in status.stages:
                if stage.state != "ready":
                    stage.state, stage.since, stage.reason = "ready", now, ""
            self._note(
                Event(now, "recovered", f"the pipeline goes on after {seconds:.1f} s, no request was lost")
            )

    def _note_refused(self, index: int, more: int) -> None:
        """One who keeps knocking is one event a minute."""
        now = time.time()
        if now - self._refused.get(index, 0.0) > _KNOCKING_S:
            self._refused[index] = now
            text = f"stage {index} refused {more} peers: its log says whom, and why"
            self._note(Event(now, "refused", text, index))

    def _note(self, event: Event) -> None:
        self._status.events = [*self._status.events, event][-_EVENTS:]

    # ---- steps -------------------------------------------------------------------------------------------

    def send(self, step: int, tokens: int, requests: int, begun_ns: int = 0) -> None:
        """A step with `tokens` scheduled tokens of `requests` requests goes onto the ring; taken up at `begun_ns`."""
        self._noted.append((step, begun_ns or time.monotonic_ns(), tokens, requests))
        self.version += 1

    def finish(self, step: int, tokens: int) -> None:
        """A step came back with `tokens` sampled tokens."""
        self._noted.append((step, time.monotonic_ns(), tokens, None))
        self.version += 1

    def settle(self) -> None:
        """Count what was noted: to be called now and then, where nothing waits for it."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        while self._noted:
            step, at_ns, tokens, requests = self._noted.popleft()
            if requests is None:
                self._count_finished(step, at_ns, tokens)
            else:
                self._count_sent(step, at_ns, tokens, requests)

    def _count_sent(self, step: int, at_ns: int, tokens: int, requests: int) -> None:
        if not self._flight.on_ring and at_ns - self._last_step_ns > WINDOW_S / _NS:
            self._busy_since_ns = at_ns
        self._flight.send(step, at_ns)
        if self._trace is not None:
            self._trace.sizes[step] = (tokens, requests)

    def _count_finished(self, step: int, at_ns: int, tokens: int) -> None:
        sent_ns = self._flight.finish(step, at_ns)
        self._last_step_ns = at_ns
        if self._trace is not None and len(self._trace.spans) < MAX_SPANS:
            self._trace.spans.append(Span("step", step, sent_ns, at_ns))
        self._status.steps += 1
        self._status.tokens += tokens
        self._generated.append((at_ns, tokens))
        while at_ns - self._generated[0][0] > WINDOW_S / _NS:
            self._generated.popleft()

    def take(self, index: int, report: StageReport) -> None:
        """What stage `index` reports."""
        now_ns = time.monotonic_ns()
        with self._lock:
            self._settle()
            self.version += 1
            stage = self._status.stages[index]
            if (more := report.link.refused - stage.link.refused) > 0:
                self._note_refused(index, more)
            stage.device, stage.memory, stage.link = report.device, report.memory, report.link
            stage.steps, stage.tokens, stage.last_step = report.steps, report.tokens, report.last_step
            stage.step_seconds, stage.batch_requests = report.step_seconds, report.batch_requests
            stage.seen_at = time.time()
            last = report.last_step.step if report.last_step else 0
            stage.queue = max(0, self._flight.sent_step - last) if self._flight.on_ring else 0
            stage.spent = _spent(report)
            samples = self._samples[index]
            samples.append(Sample(report, self._flight.busy_until(now_ns)))
            while len(samples) > 2 and report.clock_ns - samples[1].report.clock_ns > WINDOW_S / _NS:
                samples.popleft()
            stage.recent = recent(samples)

    # ---- traces ------------------------------------------------------------------------------------------

    def start_trace(self) -> None:
        """Note from now on when each step is sent and comes back."""
        with self._lock:
            self._settle()
            self._trace = StageSpans.here(ENGINE, [])

    def end_trace(self) -> StageSpans:
        """What was noted since."""
        with self._lock:
            self._settle()
            trace, self._trace = self._trace, None
        return trace or StageSpans.here(ENGINE, [])

    # ---- reading -----------------------------------------------------------------------------------------

    def status(self) -> PipelineStatus:
        """A copy of everything known now."""
        now_ns = time.monotonic_ns()
        with self._lock:
            self._settle()
            status, flight = self._status, self._flight
            status.at = time.time()
            status.in_flight = flight.on_ring
            lately = [tokens for at_ns, tokens in self._generated if now_ns - at_ns <= WINDOW_S / _NS]
            status.tokens_per_s = sum(lately) / self._window_s(now_ns)
            status.bubble = share_idle(self._samples)
            status.busy_s = busy_s = flight.busy_until(now_ns) * _NS
            computed_s = sum(stage.spent.compute_s for stage in status.stages)
            status.bubble_total = _share_left(computed_s, busy_s * len(status.stages))
            return _copy(status)

    def _window_s(self, now_ns: int) -> float:
        """Shorter at the start of a burst of steps, which would look slow for as long as the window is."""
        since_ns = self._busy_since_ns
        return min(WINDOW_S, max(_LEAST_WINDOW_S, (now_ns - since_ns) * _NS))


def _spent(report: StageReport) -> Spent:
    worked_ns = report.compute_ns + report.wait_ns + report.send_ns
    return Spent(
        compute_s=report.compute_ns * _NS,
        wait_s=report.wait_ns * _NS,
        send_s=report.send_ns * _NS,
        idle_s=max(0, report.clock_ns - report.ready_ns - worked_ns) * _NS,
    )


def _share_left(used: float, there: float) -> float:
    return min(1.0, max(0.0, 1 - used / there)) if there > 0 else 0.0


def _copy(status: PipelineStatus) -> PipelineStatus:
    return msgspec.convert(msgspec.to_builtins(status), PipelineStatus)
