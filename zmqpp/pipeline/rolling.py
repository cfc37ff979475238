"""Replacing stages at a person's order, one after another, with no request lost.

    stages 1 .. N-1   the old process ends; requests wait in the engine, and go on with the new one
    stage 0           has the requests: new ones wait at the entrance until those that run are done and it is replaced.
                      What is asked of it anew concerns the others too: then all are started anew, and flags that the
                      others were given as well are given to them anew
    all, with flags   as stage 0, and every stage gets them

A new one that does not come up is replaced by what ran before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from zmqpp.errors import LaunchError, ZmqppError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.orders import Entrance, Restart
from zmqpp.pipeline.plan import StagePlan

__all__ = ["Caretaker", "Rolling"]

_POLL_S = 0.1
_SAY_S = 10.0


class Caretaker(Protocol):
    """The supervisor, as it is needed here."""

    @property
    def state(self) -> str: ...

    def expect(self, index: int, reason: str) -> None:
        """Stage `index` is away, as it was asked to be: the pipeline is `recovering`."""
        ...

    def look_after(self, replaced: int | None = None) -> None:
        """As in its own loop; the end of stage `replaced` is the caller's to see."""
        ...

    def tend(self) -> None:
        """The same for a moment, with no stage left out."""
        ...

    def replaced(self, index: int) -> None:
        """Stage `index` has been, and all are ready."""
        ...

    def note(self, kind: str, text: str, stage: int | None = None) -> None: ...


class _NotUp(ZmqppError):
    """The new process of a stage did not become ready."""


class Rolling:
    """Carries out orders. Thread: the supervisor's.

    Args:
        patience_s: for a new process to be ready.
    """

    def __init__(
        self, launcher: Launcher, caretaker: Caretaker, entrance: Entrance, patience_s: float
    ) -> None:
        self._launcher, self._caretaker, self._entrance = launcher, caretaker, entrance
        self._patience_s = patience_s

    def run(self, order: Restart) -> None:
        """Finishes the order.

        Raises:
            LaunchError: the pipeline itself has failed.
        """
        started = time.monotonic()
        total = self._launcher.plan.total
        asked: Sequence[int | str] = list(reversed(range(total))) if order.stages is None else order.stages
        stages = [index for index in asked if isinstance(index, int) and 0 <= index < total]
        if wrong := [index for index in asked if index not in stages]:
            return order.finish(2, f"--stage {wrong[0]}: the stages are 0 to {total - 1}")
        if order.stages is None and (order.flags or order.environment):
            stages = [0]  # One after another they would not fit together meanwhile.
        try:
            for index in stages:
                self._replace(index, order)
        except _NotUp as error:
            return order.finish(1, str(error))
        took = time.monotonic() - started
        order.finish(0, f"all {total} stages are ready; no request was lost ({took:.1f} s)")

    def _replace(self, index: int, order: Restart) -> None:
        before = list(self._launcher.stage_plans)
        with self._no_requests(index, order):
            away = time.monotonic()
            try:
                self._caretaker.expect(index, f"stage {index} is being replaced, as asked for")
                changed = self._changed(before[index], order)
                if index == 0 and changed != before[0]:
                    self._swap_all([changed, *self._concerned(before, order)], order)
                else:
                    self._swap(index, changed, order)
            except (_NotUp, LaunchError) as error:
                # Who starts all anew must not meet the new flags.
                self._launcher.stage_plans[:] = before
                if index and not isinstance(error, _NotUp):
                    raise
                self._caretaker.expect(index, f"{error}; stage {index} is started as it was before")
                order.say(f"stage {index}: the new one did not come up; going back to what ran before")
                self._go_back(index, before, order, error)
            self._caretaker.replaced(index)
            order.say(f"stage {index}: requests waited {time.monotonic() - away:.1f} s")

    def _concerned(self, before: list[StagePlan], order: Restart) -> list[StagePlan]:
        """The stages but 0, with what is new for it: all of it where all are asked for, else the flags they have."""
        first, *others = before
        if order.stages is None:
            return [self._changed(plan, order) for plan in others]
        earlier = {_name(flag) for flag in self._ordered(first)}
        changed = []
        for plan in others:
            planned = self._launcher.plan.stages[plan.index].arguments
            own = [flag for flag in self._ordered(plan) if _name(flag) not in earlier]
            given = {_name(flag) for flag in _flags(planned)}
            new = [flag for flag in _flags(order.flags) if _name(flag) in given]
            words = [word for flag in [*own, *new] for word in flag]
            changed.append(dataclasses.replace(plan, arguments=(*planned, *words)))
        return changed

    def _ordered(self, plan: StagePlan) -> list[list[str]]:
        """The flags that earlier orders gave."""
        return _flags(plan.arguments[len(self._launcher.plan.stages[plan.index].arguments) :])

    def _changed(self, before: StagePlan, order: Restart) -> StagePlan:
        """What is given now goes on top of the plan's own, in place of what an earlier order gave."""
        planned = self._launcher.plan.stages[before.index]
        arguments = (*planned.arguments, *order.flags) if order.flags else before.arguments
        environment = {**before.environment, **order.environment}
        return dataclasses.replace(before, arguments=arguments, environment=environment)

    def _go_back(self, index: int, before: list[StagePlan], order: Restart, error: ZmqppError) -> None:
        """Always raises: _NotUp; LaunchError when it is the pipeline that has failed."""
        try:
            if index:
                self._swap(index, before[index], order)
            else:
                self._swap_all(before, order)
        except _NotUp as again:
            raise _NotUp(f"{error}; what ran before did not come up again either: {again}") from None
        self._caretaker.note("restarted", f"stage {index} runs as before", index)
        raise _NotUp(f"stage {index} was not replaced, and runs as before: the new {error}")

    def _swap(self, index: int, plan: StagePlan, order: Restart) -> None:
        launcher = self._launcher
        pid, started, ran = launcher.pids()[index], time.monotonic(), launcher.runs(index)
        in_order = launcher.stop_stage(index)
        how = "stopped" if in_order else "did not stop in time and was killed"
        if ran:
            order.say(f"stage {index}: {how} (pid {pid}, {time.monotonic() - started:.1f} s)")
        launcher.stage_plans[index] = plan
        launcher.restart_stage(index)
        self._await_ready(index, order)

    def _swap_all(self, plans: list[StagePlan], order: Restart) -> None:
        """With nothing to lose: no request runs inside."""
        launcher = self._launcher
        launcher.stage_plans[:] = plans
        order.say("starting all stages anew")
        launcher.restart()
        launcher.wait_ready(self._patience_s)
        self._caretaker.look_after(replaced=0)

    def _await_ready(self, index: int, order: Restart) -> None:
        launcher, caretaker = self._launcher, self._caretaker
        started, said = time.monotonic(), ""
        while caretaker.state != "ready":
            if index in launcher.lost_stages():
                raise _NotUp(launcher.how_it_ended(index))
            took = time.monotonic() - started
            if took > self._patience_s:
                phase = launcher.states[index].phase
                raise _NotUp(f"stage {index} is {phase} after {took:.0f} s, and not ready")
            caretaker.look_after(replaced=index)
            phase = launcher.states[index].phase
            if phase != said and phase in ("loading", "loaded", "ready"):
                said = phase
                order.say(f"stage {index}: {phase} ({took:.1f} s)")
            launcher.pause(_POLL_S)

    @contextmanager
    def _no_requests(self, index: int, order: Restart) -> Iterator[None]:
        """For stage 0: none runs inside, and new ones wait."""
        if index:
            yield
            return
        self._entrance.hold()
        try:
            left = wait_until_idle(self._entrance, order.drain_s, order.say, self._caretaker.tend)
            if left:
                waited = f"{left} requests still run after {order.drain_s:g} s"
                raise _NotUp(f"stage 0 was not replaced, as it would have cut them off: {waited}")
            yield
        finally:
            self._entrance.release()


def _flags(words: Sequence[str]) -> list[list[str]]:
    """Each flag with its values."""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not flags:
            flags.append([])
        flags[-1].append(word)
    return flags


def _name(flag: list[str]) -> str:
    return flag[0].partition("=")[0]


def wait_until_idle(
    entrance: Entrance,
    timeout_s: float | None,
    say: Callable[[str], None],
    meanwhile: Callable[[], None],
    until: Callable[[], bool] = lambda: False,
) -> int:
    """How many requests are left: none, unless `timeout_s` passed or `until` came true first.

    Args:
        meanwhile: called again and again; returns after a moment.
    """
    started = said = time.monotonic()
    if entrance.running:
        say(f"waiting for {entrance.running} requests")
    while left := entrance.running:
        now = time.monotonic()
        if until() or (timeout_s is not None and now - started >= timeout_s):
            return left
        if now - said >= _SAY_S:
            said = now
            say(f"waiting for {left} requests ({now - started:.0f} s)")
        meanwhile()
    return 0
