"""Keeps a pipeline served: waits until it is ready, watches it, and starts all stages anew when one is lost."""

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

    Stages lose what they had in flight when one of them ends, so all are started again together.

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
        self._ready_at = 0.0
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
                    self._launcher.check()
                    time.sleep(_POLL_S)
                except LaunchError as error:
                    self._restart_after(error)
        except LaunchError as error:
            self._enter("failed", str(error))
            raise
        except BaseException:
            self._enter("stopped", "")
            raise

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
        if time.monotonic() - self._ready_at > _FORGIVEN_S:
            self._in_a_row = 0
        while True:
            culprit = self._launcher.culprit
            self._note("lost", str(error), culprit.index if culprit else None)
            if self._in_a_row >= self._max_restarts:
                raise error
            self._in_a_row += 1
            self._restarts += 1
            self._enter("restarting", str(error))
            limit = f"restart {self._in_a_row} of at most {self._max_restarts} in a row"
            self._note("restarting", f"starting all {self._launcher.plan.total} stages anew ({limit})")
            time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._in_a_row - 1)))
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
