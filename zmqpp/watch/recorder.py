"""Where a stage's time goes: told by the stage while it runs its steps.

    with recorder.step(step, tokens, requests):      computing, but for what is told as waiting or sending
        with recorder.waiting(): ...                 for the activations
        with recorder.sending(): ...                 handing them over, or the last stage's answer

Thread: the stage's main thread. Costs a few microseconds a step; spans are kept only while a trace is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from zmqpp.watch.buckets import REQUESTS, SECONDS, Buckets
from zmqpp.watch.report import StageReport
from zmqpp.watch.span import MAX_SPANS, Span
from zmqpp.watch.status import LastStep, LinkCounters, Memory

__all__ = ["Recorder"]

_KINDS = ("compute", "wait", "send")
_NS = 1e-9


class Recorder:
    """Counts one stage's steps. Times are nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.ready()

    def ready(self) -> None:
        """Count from now on, from nothing: warm-up is no step."""
        self.steps = 0
        self.tokens = 0
        self.last_step: LastStep | None = None
        self._ready_ns = time.monotonic_ns()
        self._spent = dict.fromkeys(_KINDS, 0)
        self._this_step = dict.fromkeys(_KINDS, 0)
        self._seconds = {kind: Buckets(SECONDS) for kind in _KINDS}
        self._requests = Buckets(REQUESTS)
        self._step = 0
        self._cursor_ns = 0  # up to where the running step is accounted for; 0 between steps
        self._spans: list[Span] | None = None

    @contextmanager
    def step(self, step: int, tokens: int, requests: int) -> Iterator[None]:
        """Around one step's work; a step that raises is not counted."""
        self._step, self._cursor_ns = step, time.monotonic_ns()
        self._this_step = dict.fromkeys(_KINDS, 0)
        try:
            yield
            self._account("compute", time.monotonic_ns())
            self._finish(tokens, requests)
        finally:
            self._cursor_ns = 0

    @contextmanager
    def sampling(self, step: int) -> Iterator[None]:
        """Around the sampling of a step that had to wait for its grammar mask: more computing, no step of its own."""
        self._step, self._cursor_ns = step, time.monotonic_ns()
        self._this_step = dict.fromkeys(_KINDS, 0)
        try:
            yield
            self._account("compute", time.monotonic_ns())
            for kind, spent_ns in self._this_step.items():
                self._spent[kind] += spent_ns
        finally:
            self._cursor_ns = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for activations."""
        with self._inside("wait"):
            yield

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around handing over activations or an answer, or waiting until the last ones may be overwritten."""
        with self._inside("send"):
            yield

    @contextmanager
    def _inside(self, kind: str) -> Iterator[None]:
        if not self._cursor_ns:
            yield  # Not in a step: warm-up.
            return
        self._account("compute", time.monotonic_ns())
        yield
        self._account(kind, time.monotonic_ns())

    def _account(self, kind: str, until_ns: int) -> None:
        self._this_step[kind] += until_ns - self._cursor_ns
        if self._spans is not None and len(self._spans) < MAX_SPANS:
            self._spans.append(Span(kind, self._step, self._cursor_ns, until_ns))
        self._cursor_ns = until_ns

    def _finish(self, tokens: int, requests: int) -> None:
        self.steps += 1
        self.tokens += tokens
        for kind, spent_ns in self._this_step.items():
            self._spent[kind] += spent_ns
            self._seconds[kind].add(spent_ns * _NS)
        self._requests.add(requests)
        self.last_step = LastStep(
            step=self._step,
            at=time.time(),
            tokens=tokens,
            requests=requests,
            compute_s=self._this_step["compute"] * _NS,
            wait_s=self._this_step["wait"] * _NS,
            send_s=self._this_step["send"] * _NS,
        )

    def report(self, link: LinkCounters, memory: Memory, device: str) -> StageReport:
        """Everything counted until now."""
        return StageReport(
            clock_ns=time.monotonic_ns(),
            ready_ns=self._ready_ns,
            compute_ns=self._spent["compute"],
            wait_ns=self._spent["wait"],
            send_ns=self._spent["send"],
            steps=self.steps,
            tokens=self.tokens,
            last_step=self.last_step,
            step_seconds={kind: buckets.histogram() for kind, buckets in self._seconds.items()},
            batch_requests=self._requests.histogram(),
            link=link,
            memory=memory,
            device=device,
        )

    # ---- traces ------------------------------------------------------------------------------------------

    def start_trace(self) -> None:
        """Keep spans from now on; what an earlier trace kept is dropped."""
        self._spans = []

    def end_trace(self) -> list[Span]:
        """The spans since `start_trace`, in order; none when no trace was started."""
        spans, self._spans = self._spans, None
        return spans or []
