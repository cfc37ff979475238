"""What is known of one stage, as its events come in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zmqpp.units import size

__all__ = ["PHASES", "StageState"]


PHASES = ("starting", "waiting", "loading", "loaded", "ready", "failed", "stopped")
_COPIED = frozenset(
    (
        "start_layer",
        "end_layer",
        "total_layers",
        "parameters",
        "read_bytes",
        "wanted_bytes",
        "sent_bytes",
        "received_bytes",
        "steps",
        "lane",
    )
)


@dataclass
class StageState:
    """One stage as the launcher sees it; `phase` is one of PHASES."""

    index: int
    phase: str = "starting"
    waiting_for: str = ""
    start_layer: int | None = None
    end_layer: int | None = None
    total_layers: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    read_bytes: int = 0
    wanted_bytes: int = 0
    """Of its weights, while it loads."""
    reason: str = ""
    sent_bytes: int | None = None
    received_bytes: int | None = None
    steps: int | None = None
    lane: str = ""
    """How its tensors go to the next stage: "shm to stage 1"."""
    started_s: float = field(default_factory=time.time)
    since_s: float = field(default_factory=time.time)
    """When it came to its phase; unix seconds, as below."""
    settled_s: float | None = None
    """When it became ready or failed."""
    on_trial: bool = False
    """It replaces another one and was not ready yet: its failure is its own, unless the engine has decided so."""

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event; unknown events and fields are left for later releases."""
        phase = str(event.get("event", ""))
        if phase in PHASES and self.phase != "failed" and self.phase != phase:
            self.phase, self.since_s = phase, float(event.get("t", time.time()))
        self.waiting_for = str(event.get("for", "")) if phase == "waiting" else ""
        for name in _COPIED.intersection(event):
            setattr(self, name, event[name])
        # The first reason is the cause; neighbours that lost this stage report it once more.
        self.reason = self.reason or str(event.get("reason", ""))
        if "bytes" in event:
            self.size_bytes = event["bytes"]
        self.on_trial &= phase != "ready" and not event.get("decided")
        if phase in ("ready", "failed") and self.settled_s is None:
            self.settled_s = float(event.get("t", time.time()))

    def fail(self, reason: str) -> None:
        """Its process ended; a reason it gave itself stays."""
        self.phase = "failed"
        self.reason = self.reason or reason
        self.settled_s = self.since_s = time.time()

    @property
    def elapsed_s(self) -> float:
        """Seconds from start to ready or failed, or until now."""
        return max(0.0, (self.settled_s or time.time()) - self.started_s)

    @property
    def progress(self) -> str:
        """`45% of 2.1 GB` while weights are read, else nothing."""
        if self.phase != "loading" or not self.wanted_bytes:
            return ""
        return f"{100 * self.read_bytes // self.wanted_bytes}% of {size(self.wanted_bytes)}"

    @property
    def layers(self) -> str:
        """`0-4 of 8`, half-open, or nothing while unknown."""
        if self.start_layer is None or self.end_layer is None:
            return ""
        of = f" of {self.total_layers}" if self.total_layers is not None else ""
        return f"{self.start_layer}-{self.end_layer}{of}"
