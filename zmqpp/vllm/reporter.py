"""A stage's word on itself: counters to the engine about once a second, spans when a trace is taken.

Thread: the stage's main thread.
"""

from __future__ import annotations

import time
from typing import Any

from zmqpp import control
from zmqpp.vllm.place import Place
from zmqpp.vllm.worker import StageWorker
from zmqpp.watch import report, span
from zmqpp.watch.status import LinkCounters

_BUSY_S = 1.0
"""Between two reports of a stage that runs steps."""
_IDLE_S = 2.0
"""Between two reports of one that does not: a sign of life."""
_COUNTED = frozenset(LinkCounters.__struct_fields__) - {"lane", "lane_reason"}


class Reporter:
    """Made when the stage is ready; its `recorder` is the worker's own."""

    def __init__(self, place: Place, worker: StageWorker) -> None:
        self.recorder = worker.group.recorder
        self.recorder.ready()
        self._place, self._worker = place, worker
        self._reported_s = 0.0
        self._reported_steps = -1

    def report_if_due(self) -> None:
        """Report when there is something new and the last report is old enough."""
        news = self.recorder.steps != self._reported_steps
        if time.monotonic() - self._reported_s >= (_BUSY_S if news else _IDLE_S):
            self._reported_s, self._reported_steps = time.monotonic(), self.recorder.steps
            payload = report.encode(
                self.recorder.report(self._link_counters(), self._worker.memory(), self._worker.device)
            )
            self._place.reply(control.Report(self._place.index, payload))

    def _link_counters(self) -> LinkCounters:
        stats: dict[str, Any] = self._place.link.stats()
        counted = {name: stats[name] for name in _COUNTED}
        lane = None if self._place.is_last else stats["send_lane"]
        return LinkCounters(lane=lane, lane_reason=stats["lane_reason"], **counted)

    def trace(self, start: bool) -> bytes:
        """Start keeping spans, or end it; both tell this stage's clock."""
        if start:
            self.recorder.start_trace()
        spans = [] if start else self.recorder.end_trace()
        return span.encode(span.StageSpans.here(self._place.index, spans))
