"""Keeps a pipeline served: waits until it is ready, watches it, replaces stages that are lost, carries out orders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from zmqpp.errors import LaunchError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.losses import Losses
from zmqpp.pipeline.orders import Drain, Entrance, Order, Orders, Restart
from zmqpp.pipeline.rolling import Rolling, wait_until_idle
from zmqpp.pipeline.signals import StopRequested
from zmqpp.pipeline.stage_status import stage_status
from zmqpp.watch.status import Event, PipelineStatus

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
        entrance, orders: without them no order is carried out.
        drain_s: how long requests that run may go on after SIGTERM.
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
        entrance: Entrance | None = None,
        orders: Orders | None = None,
        drain_s: float = 0.0,
    ) -> None:
        self._launcher = launcher
        self._entrance, self._orders, self._drain_s = entrance, orders or Orders(), drain_s
        self._was_draining = False
        self._max_restarts, self._timeout_s = max_restarts, timeout_s
        self._on_poll, self._on_event = on_poll, on_event
        self._state, self._since, self._reason = "starting", time.time(), ""
        self._restarts = self._replacements = self._in_a_row = 0
        self._losses = Losses()
        self._ready_at = self._back_by = 0.0
        self._events: list[Event] = []

    def run(self) -> None:
        """Start the stages and keep them running; returns when an order says so.

        Raises:
            LaunchError: they did not become ready the first time, or failed too often in a row.
            StopRequested: a signal asked to stop.
        """
        try:
            self._launcher.start()
            self._await_ready("ready")
            while not self._turn():
                time.sleep(_POLL_S)
            self._enter("stopped", "")
        except LaunchError as error:
            self._enter("failed", str(error))
            raise
        except StopRequested:
            self._let_finish()
            self._enter("stopped", "")
            raise
        except BaseException:
            self._enter("stopped", "")
            raise
        finally:
            self._orders.close(f"the pipeline {self._state}{self._reason and f': {self._reason}'}")

    def _turn(self) -> bool:
        """True when an order ended the pipeline."""
        try:
            self.look_after()
            return self._obey(self._orders.take())
        except LaunchError as error:
            self._restart_after(error)
            return False

    def look_after(self, replaced: int | None = None) -> None:
        """Replace each stage that is lost, while the others wait for it, and tell when all are there again.

        Args:
            replaced: this one is being replaced by someone who looks after it.
        Raises:
            LaunchError: the pipeline itself failed, or one was lost too often, or is not back in time.
        """
        launcher = self._launcher
        self._note_news()
        if lost := [index for index in launcher.lost_stages() if index != replaced]:
            self._replace(lost)
        elif self._state != "recovering" or launcher.has_failed:
            launcher.check()
        elif launcher.all_ready():
            self._ready_at = time.monotonic()
            lost_any = self._settle()
            self._enter("ready", "")
            if lost_any or replaced is None:
                self.note("recovered", f"all {launcher.plan.total} stages are ready")
        elif replaced is None and time.monotonic() > self._back_by:
            raise LaunchError(f"not ready {self._timeout_s:g} s after it was lost: {self._reason}")

    def expect(self, index: int, reason: str) -> None:
        """Stage `index` is about to be replaced at someone's order; it is no loss, and does not count as one."""
        self._losses.ask_for(index)
        self._back_by = time.monotonic() + self._timeout_s
        self._enter("recovering", reason)
        self.note("restarting", reason, index)

    def replaced(self, index: int) -> None:
        """As it was asked for."""
        self._replacements += 1
        self.note("restarted", f"stage {index} was replaced, as asked for", index)

    @property
    def state(self) -> str:
        return self._state

    # ---- orders ------------------------------------------------------------------------------------------

    def _obey(self, order: Order | None) -> bool:
        """True when it ends the pipeline."""
        if order is None or self._entrance is None:
            return False
        try:
            if isinstance(order, Restart):
                Rolling(self._launcher, self, self._entrance, self._timeout_s).run(order)
            elif isinstance(order, Drain):
                return self._drain(order, self._entrance)
        except LaunchError as error:
            order.finish(1, f"the pipeline failed meanwhile: {error}")
            raise
        return False

    def _drain(self, order: Drain, entrance: Entrance) -> bool:
        entrance.drain()
        self._note_news()
        left = wait_until_idle(
            entrance, order.timeout_s, order.say, self.look_after, lambda: not entrance.draining
        )
        if not entrance.draining:
            order.finish(1, "requests are taken again, as someone else has asked for")
        elif left:
            order.finish(1, f"{left} requests still run after {order.timeout_s:g} s; new ones are refused")
        else:
            then = "the pipeline ends" if order.stop else "new ones are refused until `zmqpp drain --resume`"
            order.finish(0, f"no request is left; {then}")
            return order.stop
        return False

    def _let_finish(self) -> None:
        """Requests that run, after the signal to stop and for as long as they may; a further signal ends the wait."""
        entrance, launcher = self._entrance, self._launcher
        if entrance is None or not self._drain_s or self._state not in ("ready", "recovering"):
            return
        entrance.drain()
        try:
            self._note_news()
            say = partial(self.note, "draining")
            wait_until_idle(entrance, self._drain_s, say, self.look_after, lambda: launcher.is_hurried)
        except LaunchError:
            pass  # It ends anyhow.

    def _note_news(self) -> None:
        """What came about elsewhere: in the stages, and the entrance closed or opened."""
        while self._launcher.news:
            self._take(self._launcher.news.popleft())
        draining = self._entrance is not None and self._entrance.draining
        if draining != self._was_draining:
            self._was_draining = draining
            text = "new requests are refused" if draining else "requests are taken again"
            self.note("draining" if draining else "resumed", text)

    def _settle(self) -> bool:
        """Count what was lost until now; whether anything was."""
        self._note_news()
        return self._losses.settle()

    def _take(self, news: Mapping[str, Any]) -> None:
        stage = news["stage"]
        if news["event"] == "refused":
            text = f"stage {stage} refused a peer at {news.get('peer')}: {news.get('why')}"
            self.note("refused", text, stage)
        elif news["event"] == "missed":
            self._losses.missed(stage)
        elif (
            self._state == "ready"
        ):  # Else a process has ended, and all are ready when its successor is, too.
            self._losses.settle()

    # ---- losses ------------------------------------------------------------------------------------------

    def _replace(self, lost: list[int]) -> None:
        launcher = self._launcher
        self._forgive()
        if self._in_a_row >= self._max_restarts:
            launcher.check()  # Which raises, and is noted once.
        reason = "; ".join(launcher.how_it_ended(index) for index in lost)
        for index in lost:
            self._losses.ended(index)
            self.note("lost", launcher.how_it_ended(index), index)
        self._in_a_row += 1
        self._restarts += 1
        self._back_by = time.monotonic() + self._timeout_s
        self._enter("recovering", reason)
        stages = ", ".join(f"stage {index}" for index in lost)
        self.note("restarting", f"starting {stages} anew ({self._limit})", lost[0])
        if self._in_a_row > 1:
            time.sleep(self._pause_s)
        for index in lost:
            launcher.restart_stage(index)

    def _forgive(self) -> None:
        if time.monotonic() - self._ready_at > _FORGIVEN_S:
            self._in_a_row = 0

    def _given_up(self, error: LaunchError) -> str:
        many = f"; given up after {self._in_a_row} restarts in a row" if self._in_a_row else ""
        return f"{error}{many}"

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
        self._settle()
        self._enter("ready", "")
        self.note(kind, f"all {self._launcher.plan.total} stages are ready")

    def _restart_after(self, error: LaunchError) -> None:
        """Until they are ready again.

        Raises:
            LaunchError: the last of too many.
        """
        self._forgive()
        while True:
            culprit = self._launcher.culprit
            if culprit is not None:
                self._losses.ended(culprit.index)
            self.note("lost", str(error), culprit.index if culprit else None)
            if self._in_a_row >= self._max_restarts:
                raise LaunchError(self._given_up(error)) from None
            self._in_a_row += 1
            self._restarts += 1
            self._enter("restarting", str(error))
            self.note("restarting", f"starting all {self._launcher.plan.total} stages anew ({self._limit})")
            time.sleep(self._pause_s)
            try:
                self._launcher.restart()
                self._await_ready("recovered")
                return
            except LaunchError as again:
                error = again

    def _enter(self, state: str, reason: str) -> None:
        self._state, self._since, self._reason = state, time.time(), reason
        self._orders.state = state

    def note(self, kind: str, text: str, stage: int | None = None) -> None:
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
            stages=[stage_status(state, pid, str(log)) for state, pid, log in known],
            restarts=self._restarts,
            recoveries=self._losses.recoveries,
            losses=self._losses.stages,
            replacements=self._replacements,
            draining=self._entrance is not None and self._entrance.draining,
            events=list(self._events),
        )
