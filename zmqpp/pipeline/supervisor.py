"""Keeps a pipeline served: waits until it is ready, watches it, replaces stages that are lost, carries out orders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from zmqpp.errors import LaunchError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.losses import Losses
from zmqpp.pipeline.misses import Misses
from zmqpp.pipeline.orders import Drain, Entrance, Order, Orders, Restart
from zmqpp.pipeline.restarts import Restarts
from zmqpp.pipeline.rolling import Rolling, wait_until_idle
from zmqpp.pipeline.signals import StopRequested
from zmqpp.pipeline.stage_status import stage_status
from zmqpp.watch.status import Event, PipelineStatus

__all__ = ["Supervisor"]

_POLL_S = 0.2
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
        self._restarts, self._timeout_s = Restarts(max_restarts), timeout_s
        self._on_poll, self._on_event = on_poll, on_event
        self._state, self._since, self._reason = "starting", time.time(), ""
        self._losses, self._misses, self._replacements = Losses(), Misses(), 0
        self._due: dict[int, float] = {}
        """When to start anew what was lost."""
        self._back_by = 0.0
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
                self._launcher.pause(_POLL_S)
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
        awaited = {replaced, *self._due}
        if lost := [index for index in launcher.lost_stages() if index not in awaited]:
            self._replace(lost)
        self._start_due()
        if lost:
            return
        if self._state != "recovering" or launcher.has_failed:
            launcher.check()
        elif not self._due and launcher.all_ready():
            lost_any = self._settle()
            self._enter("ready", "")
            if lost_any or replaced is None:
                self.note("recovered", f"all {launcher.plan.total} stages are ready")
        elif replaced is None and time.monotonic() > self._back_by:
            raise LaunchError(f"not ready {self._timeout_s:g} s after it was lost: {self._reason}")

    def tend(self) -> None:
        """Look after it, for a moment."""
        self.look_after()
        self._launcher.pause(_POLL_S)

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
        left = wait_until_idle(entrance, order.timeout_s, order.say, self.tend, lambda: not entrance.draining)
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
            wait_until_idle(entrance, self._drain_s, say, self.tend, lambda: launcher.is_hurried)
        except LaunchError:
            pass  # It ends anyhow.

    def _note_news(self) -> None:
        """What came about elsewhere: in the stages, and the entrance closed or opened."""
        while self._launcher.news:
            self._take(self._launcher.news.popleft())
        for stage, reason in self._misses.take_due():
            if self._state == "ready" and self._launcher.runs(stage):
                self._misses.tell()
                self.note("lost", reason, stage)
        draining = self._entrance is not None and self._entrance.draining
        if draining != self._was_draining:
            self._was_draining = draining
            text = "new requests are refused" if draining else "requests are taken again"
            self.note("draining" if draining else "resumed", text)

    def _settle(self) -> bool:
        """All stages are ready: count what was lost until now; whether anything was."""
        self._note_news()
        self._restarts.ready()
        self._misses.clear()
        return self._losses.settle()

    def _take(self, news: Mapping[str, Any]) -> None:
        stage = news["stage"]
        if news["event"] == "refused":
            text = f"stage {stage} refused a peer at {news.get('peer')}: {news.get('why')}"
            self.note("refused", text, stage)
        elif news["event"] == "missed":
            self._losses.missed(stage)
            self._misses.note(stage, str(news.get("reason")))
        elif self._state == "ready":  # Else a process has ended: all are ready when the next one is.
            self._losses.settle()
            if self._misses.clear():
                self.note("recovered", f"the pipeline goes on after {news.get('seconds', 0):.1f} s")

    # ---- losses ------------------------------------------------------------------------------------------

    def _replace(self, lost: list[int]) -> None:
        """Have them started anew: now, or when the pause is over."""
        launcher, restarts = self._launcher, self._restarts
        if not restarts.lose(from_outside=all(launcher.was_killed(index) for index in lost)):
            launcher.check()  # Which raises, and is noted once.
        restarts.start()
        reason = "; ".join(launcher.how_it_ended(index) for index in lost)
        for index in lost:
            self._losses.ended(index)
            self._due[index] = time.monotonic() + restarts.pause_s
            self.note("lost", launcher.how_it_ended(index), index)
        self._back_by = time.monotonic() + restarts.pause_s + self._timeout_s
        self._enter("recovering", reason)
        stages = ", ".join(f"stage {index}" for index in lost)
        after = f" in {restarts.pause_s:g} s" if restarts.pause_s else ""
        self.note("restarting", f"starting {stages} anew{after} ({restarts.limit})", lost[0])

    def _start_due(self) -> None:
        for index in [index for index, at in self._due.items() if time.monotonic() >= at]:
            del self._due[index]
            if not self._launcher.runs(index):  # It may have been replaced as asked for.
                self._launcher.restart_stage(index)

    def _await_ready(self, kind: str) -> None:
        for _ in self._launcher.watch(self._timeout_s):
            self._on_poll()
        self._on_poll()
        self._settle()
        self._enter("ready", "")
        self.note(kind, f"all {self._launcher.plan.total} stages are ready")

    def _restart_after(self, error: LaunchError) -> None:
        """Until they are ready again.

        Raises:
            LaunchError: the last of too many.
        """
        self._due.clear()
        while True:
            may_go_on = self._restarts.lose(from_outside=False)
            culprit = self._launcher.culprit
            if culprit is not None:
                self._losses.ended(culprit.index)
            self.note("lost", str(error), culprit.index if culprit else None)
            if not may_go_on:
                raise LaunchError(f"{error}{self._restarts.given_up}") from None
            self._restarts.start()
            self._enter("restarting", str(error))
            all_of_them = f"all {self._launcher.plan.total} stages"
            self.note("restarting", f"starting {all_of_them} anew ({self._restarts.limit})")
            self._launcher.pause(self._restarts.pause_s)
            try:
                self._launcher.restart()
                self._await_ready("recovered")
                return
            except LaunchError as again:
                error = again

    @property
    def lost_from_outside(self) -> bool:
        """See gateway/source: no stage failed by itself since all were ready. Thread: any."""
        failed = any(state.phase == "failed" for state in self._launcher.states)
        return self._restarts.from_outside and not failed

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
        missed = self._misses.open if self._state == "ready" else ""
        return PipelineStatus(
            state="recovering" if missed else self._state,
            since=self._since,
            reason=missed or self._reason,
            at=time.time(),
            model=names[0] if names else launcher.plan.model,
            total_stages=launcher.plan.total,
            stages=[stage_status(state, pid, str(log)) for state, pid, log in known],
            restarts=self._restarts.total,
            recoveries=self._losses.recoveries,
            losses=self._losses.stages,
            replacements=self._replacements,
            draining=self._entrance is not None and self._entrance.draining,
            events=list(self._events),
        )
