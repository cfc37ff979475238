"""Keeps a pipeline served: waits until it is ready, watches it, and replaces stages that are lost."""

from __future__ import annotations

import time
from collections.abc import Callable

from zmqpp.errors import LaunchError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.state import StageState
from zmqpp.watch.status import Event, Layers, LinkCounters, PipelineStatus, StageStatus

__all__ = ["Supervisor"]

_POLL_S = 0.2
_FORGIVEN_S = 600.0
"""After so long without a failure the restarts are counted anew."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_EVENTS = 100


class Supervisor:
    """Owns nothing: the launcher it is given is entered and left by its owner.

    A stage that ends is started anew while the others wait for it. Where the pipeline itself fails, all are.

    Args:
        launcher: entered.
        max_restarts: in a row; 0 ends everything at the first failure.
        timeout_s: until all stages must be ready, each time.
        on_poll: called about ten times a second while stages load; on_event: with every event.
    Thread: `run` on the main thread; `status` on any.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        max_restarts: int,
        timeout_s: float,
        on_poll: Callable[[], None] = lambda: None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._launcher = launcher
        self._max_restarts, self._timeout_s = max_restarts, timeout_s
        self._on_poll, self._on_event = on_poll, on_event
        self._state, self._since, self._reason = "starting", time.time(), ""
        self._restarts = self._recoveries = self._in_a_row = 0
        self._ready_at = self._back_by = 0.0
        self._events: list[Event] = []

    def run(self) -> None:
        """Start the stages and keep them running; returns never.

        Raises:
            LaunchError: they did not become ready the first time, or failed too often in a row.
            StopRequested: a signal asked to stop.
        """
        try:
            self._launcher.start()
            self._await_ready("ready")
            while True:
                try:
                    self._look_after()
                    time.sleep(_POLL_S)
                except LaunchError as error:
                    self._restart_after(error)
        except LaunchError as error:
            self._enter("failed", str(error))
            raise
        except BaseException:
            self._enter("stopped", "")
            raise

    def _look_after(self) -> None:
        """Replace each stage that is lost, while the others wait for it, and tell when all are there again.

        Raises:
            LaunchError: the pipeline itself failed, or one was lost too often, or is not back in time.
        """
        launcher = self._launcher
        if lost := launcher.lost_stages():
            self._replace(lost)
        elif self._state != "recovering":
            launcher.check()
        elif launcher.all_ready():
            self._ready_at = time.monotonic()
            self._recoveries += 1
            self._enter("ready", "")
            self._note("recovered", f"all {launcher.plan.total} stages are ready")
        elif time.monotonic() > self._back_by:
            raise LaunchError(f"not ready {self._timeout_s:g} s after it was lost: {self._reason}")

    def _replace(self, lost: list[int]) -> None:
        launcher = self._launcher
        self._forgive()
        if self._in_a_row >= self._max_restarts:
            launcher.check()  # Which raises, and is noted once.
        reason = "; ".join(launcher.how_it_ended(index) for index in lost)
        for index in lost:
            self._note("lost", launcher.how_it_ended(index), index)
        self._in_a_row += 1
        self._restarts += 1
        self._back_by = time.monotonic() + self._timeout_s
        self._enter("recovering", reason)
        stages = ", ".join(f"stage {index}" for index in lost)
        self._note("restarting", f"starting {stages} anew ({self._limit})", lost[0])
        if self._in_a_row > 1:
            time.sleep(self._pause_s)
        for index in lost:
            launcher.restart_stage(index)

    def _forgive(self) -> None:
        if time.monotonic() - self._ready_at > _FORGIVEN_S:
            self._in_a_row = 0

    @property
    def _limit(self) -> str:
        return f"restart {self._in_a_row} of at most {self._max_restarts} in a row"

    @property
    def _pause_s(self) -> float:
        return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._in_a_row - 1)))

    def _await_ready(self, kind: str) -> None:
        for _ in self._launcher.watch(self._timeout_s):
            self._on_poll()
        self._on_poll()
        self._ready_at = time.monotonic()
        self._recoveries += kind == "recovered"
        self._enter("ready", "")
        self._note(kind, f"all {self._launcher.plan.total} stages are ready")

    def _restart_after(self, error: LaunchError) -> None:
        """Until they are ready again.

        Raises:
            LaunchError: the last of too many.
        """
        self._forgive()
        while True:
            culprit = self._launcher.culprit
            self._note("lost", str(error), culprit.index if culprit else None)
            if self._in_a_row >= self._max_restarts:
                raise error
            self._in_a_row += 1
            self._restarts += 1
            self._enter("restarting", str(error))
            self._note("restarting", f"starting all {self._launcher.plan.total} stages anew ({self._limit})")
            time.sleep(self._pause_s)
            try:
                self._launcher.restart()
                self._await_ready("recovered")
                return
            except LaunchError as again:
                error = again

    def _enter(self, state: str, reason: str) -> None:
        self._state, self._since, self._reason = state, time.time(), reason

    def _note(self, kind: str, text: str, stage: int | None = None) -> None:
        event = Event(time.time(), kind, text, stage)
        self._events = [*self._events, event][-_EVENTS:]
        self._on_event(event)

    def status(self) -> PipelineStatus:
        """What is known here: states, processes, logs, restarts and events."""
        launcher = self._launcher
        known = zip(launcher.states, launcher.pids(), launcher.log_paths(), strict=True)
        names = launcher.plan.api.names
        return PipelineStatus(
            state=self._state,
            since=self._since,
            reason=self._reason,
            at=time.time(),
            model=names[0] if names else launcher.plan.model,
            total_stages=launcher.plan.total,
            stages=[_stage(state, pid, str(log)) for state, pid, log in known],
            restarts=self._restarts,
            recoveries=self._recoveries,
            events=list(self._events),
        )


def _stage(state: StageState, pid: int, log: str) -> StageStatus:
    start, end, total = state.start_layer, state.end_layer, state.total_layers
    layers = (
        Layers(start, end, total) if start is not None and end is not None and total is not None else None
    )
    return StageStatus(
        stage=state.index,
        state=state.phase,
        since=state.since_s,
        reason=state.reason
        or state.progress
        or (f"waiting for {state.waiting_for}" if state.waiting_for else ""),
        pid=pid,
        layers=layers,
        parameters=state.parameters or 0,
        weight_bytes=state.size_bytes or 0,
        link=LinkCounters(lane=state.lane.partition(" ")[0] or None),
        log=log,
    )
