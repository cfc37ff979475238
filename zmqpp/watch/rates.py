"""From a stage's growing counters to what it does just now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zmqpp.watch.report import StageReport
from zmqpp.watch.status import Recent

__all__ = ["Sample", "recent", "share_idle"]

_NS = 1e-9


@dataclass(frozen=True)
class Sample:
    """A report, and for how long the engine had had steps on the ring when it came."""

    report: StageReport
    busy_ns: int


def recent(samples: Sequence[Sample]) -> Recent:
    """Rates between the first and the last of `samples`, one stage's window; of a single one, since it was ready."""
    last = samples[-1].report
    before = samples[0].report if len(samples) > 1 else None
    window_s = max(1, last.clock_ns - (before.clock_ns if before else last.ready_ns)) * _NS

    def grown(value: Callable[[StageReport], int]) -> int:
        return value(last) - (value(before) if before else 0)

    compute_s, wait_s, send_s = (
        grown(lambda r: r.compute_ns) * _NS,
        grown(lambda r: r.wait_ns) * _NS,
        grown(lambda r: r.send_ns) * _NS,
    )
    steps = grown(lambda r: r.steps)
    return Recent(
        window_s=window_s,
        tokens_per_s=grown(lambda r: r.tokens) / window_s,
        steps_per_s=steps / window_s,
        # A link counts from its opening: what came before the first report was the start.
        bytes_sent_per_s=grown(lambda r: r.link.bytes_sent) / window_s if before else 0.0,
        bytes_received_per_s=grown(lambda r: r.link.bytes_received) / window_s if before else 0.0,
        compute=compute_s / window_s,
        wait=wait_s / window_s,
        send=send_s / window_s,
        idle=max(0.0, 1 - (compute_s + wait_s + send_s) / window_s),
        step_s=compute_s / steps if steps else 0.0,
        hop_s=last.link.receive_p50_us * 1e-6,
    )


def share_idle(stages: Sequence[Sequence[Sample]]) -> float:
    """The bubble: stage time without computing, while steps were on the ring, in the windows of all stages.

    0.0 when no step was on the ring, or a stage has not reported twice.
    """
    computed = busy = 0
    for samples in stages:
        if len(samples) < 2:
            return 0.0
        computed += samples[-1].report.compute_ns - samples[0].report.compute_ns
        busy += samples[-1].busy_ns - samples[0].busy_ns
    return min(1.0, max(0.0, 1 - computed / busy)) if busy > 0 else 0.0
