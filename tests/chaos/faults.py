"""What happens to the pipeline: one fault at a time, at random, and how long it takes to be over."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.wire import Wires
from zmqpp.pipeline.events import read_events
from zmqpp.pipeline.launcher import Launcher

LIMIT_S = 240.0
"""Until the pipeline must be whole again."""
_LOOK_S = 0.02
_NOTICED_S = 7.0
"""A loss that nobody notices in this time was none."""


@dataclass
class Outcome:
    """One fault, and the way back from it; seconds."""

    fault: str
    recovery_s: float | None
    """From the fault (for one that lasts: its end) until the engine went on; None if nobody noticed it."""
    beyond_start_s: float | None
    """The part of it after the last replaced process had come up and waited for its settings."""


@dataclass
class Faults:
    """Injects them.

    Args:
        launcher: of the running pipeline; lost stages are replaced by another thread.
        wires: wire I leads from stage I to the next.
    """

    launcher: Launcher
    wires: Wires
    dice: random.Random
    stage_0_down: list[tuple[float, float]] = field(default_factory=list)
    """When; time.monotonic()."""

    def one(self) -> Outcome:
        """Inject one and wait until it is over.

        Raises:
            TimeoutError: it never was.
        """
        total = self.launcher.plan.total
        stage, wire = self.dice.randrange(1, total), self.dice.randrange(total)
        other = self.dice.choice([i for i in range(1, total) if i != stage] or [stage])
        short, long = self.dice.uniform(0.2, 3.0), self.dice.uniform(6.0, 20.0)
        faults: list[tuple[int, str, Callable[[], None]]] = [
            (8, f"kill -9 stage {stage}", lambda: self._kill(stage)),
            (2, f"kill -9 stages {stage} and {other}", lambda: self._kill(stage, other)),
            (2, f"kill -9 stage {stage}, again while it loads", lambda: self._kill_twice(stage, stage)),
            (2, f"kill -9 stage {stage}, {other} meanwhile", lambda: self._kill_twice(stage, other)),
            (1, f"SIGTERM to stage {stage}", lambda: self._kill(stage, by=signal.SIGTERM)),
            (1, f"SIGSTOP stage {stage} for {short:.1f} s", lambda: self._stop(stage, short)),
            (2, f"SIGSTOP stage {stage} for {long:.1f} s", lambda: self._stop(stage, long)),
            (2, f"reset behind stage {wire}", lambda: self.wires.reset(wire)),
            (2, f"partition behind stage {wire} for {long:.1f} s", lambda: self.wires.hold(wire, long)),
            (1, f"partition behind stage {wire} for {short:.1f} s", lambda: self.wires.hold(wire, short)),
            (1, f"0.1 s delay behind stage {wire}", lambda: self.wires.slow(wire, 0.1, short)),
            (1, "kill -9 stage 0", self._kill_first),
        ]
        _, name, inject = self.dice.choices(faults, [weight for weight, _, _ in faults])[0]
        return self._time(name, inject)

    def stage_0_was_down(self, since: float) -> bool:
        """At any moment from `since` (time.monotonic()) until now."""
        return any(end >= since for _, end in self.stage_0_down)

    # ---- the faults --------------------------------------------------------------------------------------

    def _kill(self, *stages: int, by: int = signal.SIGKILL) -> None:
        for stage in stages:
            os.kill(self.launcher.pids()[stage], by)

    def _kill_twice(self, stage: int, then: int) -> None:
        before = self.launcher.pids()[stage]
        self._kill(stage)
        moment = self.dice.uniform(0.0, 12.0)
        _until(lambda: self.launcher.pids()[stage] not in (0, before), "stage is started again")
        time.sleep(moment)
        self._kill(then)

    def _stop(self, stage: int, seconds: float) -> None:
        pid = self.launcher.pids()[stage]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def _kill_first(self) -> None:
        began, before = time.monotonic(), self.launcher.pids()[0]
        self.stage_0_down.append((began, float("inf")))
        self._kill(0)
        _until(lambda: self.launcher.pids()[0] not in (0, before) and self._is_well(), "stage 0 is back")
        self.stage_0_down[-1] = (began, time.monotonic())

    # ---- the way back ------------------------------------------------------------------------------------

    def _time(self, name: str, inject: Callable[[], None]) -> Outcome:
        pids, recoveries = self.launcher.pids(), self._recoveries()
        began = time.time()
        inject()
        over = time.time()
        if not self._noticed(recoveries, pids):
            return Outcome(name, None, None)
        first_died = self.launcher.pids()[0] != pids[0]
        must_recover = self.launcher.pids() != pids and not first_died
        _until(lambda: self._is_well() and not (must_recover and self._recoveries() == recoveries), name)
        now = self._recovered_at()
        if first_died or self.launcher.pids()[0] != pids[0]:
            return Outcome(name, None, None)  # It began anew: nothing was recovered.
        lasting = name.startswith(("SIGSTOP", "partition"))
        up = self._came_up([i for i, pid in enumerate(self.launcher.pids()) if pid != pids[i]], began)
        since_start = None if up is None else now - up
        return Outcome(name, max(0.0, now - (over if lasting else began)), since_start)

    def _noticed(self, recoveries: int, pids: list[int]) -> bool:
        deadline = time.monotonic() + _NOTICED_S
        while time.monotonic() < deadline:
            if not self._is_well() or self._recoveries() != recoveries or self.launcher.pids() != pids:
                return True
            time.sleep(_LOOK_S)
        return False

    def _came_up(self, stages: list[int], since: float) -> float | None:
        """When the last process of these stages was there, with vLLM imported, and waited for its settings."""
        events, _ = read_events(str(self.launcher.events_path), 0)
        times = [
            e["t"] for e in events if e["event"] == "waiting" and e["stage"] in stages and e["t"] > since
        ]
        return max(times, default=None)

    def _is_well(self) -> bool:
        try:
            return httpx.get(f"{self.launcher.plan.api.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _recoveries(self) -> int:
        """How often the engine has recovered since it started."""
        return int(self._status().get("recoveries", -1))

    def _recovered_at(self) -> float:
        """When the engine had everyone again, as it says; unix seconds."""
        times = [event["at"] for event in self._status().get("events", ()) if event["kind"] == "recovered"]
        return max(times, default=time.time())

    def _status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = httpx.get(
                f"{self.launcher.plan.api.url}/pipeline/status", timeout=5
            ).json()
            return status
        except (httpx.HTTPError, ValueError):
            return {}


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not over after {LIMIT_S:g} s")
        time.sleep(_LOOK_S)
