"""The engine's end of the ring: it sends every request, and every reply and notice comes back to it.

Thread: the engine's main thread sends and waits; a watch thread looks at the ring while nobody waits, so
that a stage lost in an idle moment is noticed too. `_reading` says who reads.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from zmqpp import control
from zmqpp.errors import DeadlineError, PeerLostError, RecvTimeout, StageError, ZmqppError
from zmqpp.pipeline.events import TRIAL_VARIABLE
from zmqpp.transport import Link, Route
from zmqpp.vllm import codec, plain_step
from zmqpp.vllm.flights import Flights
from zmqpp.vllm.ring_future import LostMeanwhile, RingCall, RingFuture, RingTimeout, StageLost
from zmqpp.vllm.timeouts import step_s
from zmqpp.watch import report
from zmqpp.watch.board import Board

_POLL_S = 0.25
_REPEAT_S = 0.5


class EngineRing:
    """Requests and replies over the ring of stages.

    Args:
        link: PUSH to stage 0, PULL from the last stage.
        board: hears of every step, report and failure.
        check_child: raises when stage 0's own process is gone.
    """

    def __init__(self, link: Link, board: Board, check_child: Callable[[], None]) -> None:
        self.link, self.board, self.stages = link, board, board.stages
        self.on_tick: Callable[[], None] = lambda: None
        """Called a few times a second by the watch thread, also once after a failure."""
        self.failure: StageError | None = None
        self.lost: control.Lost | None = None
        """What ended this epoch; until `renew`, reading and sending raise StageLost."""
        self.recover: Callable[[], None] | None = None
        """Brings the ring back and gives up what was on it; None = a lost stage ends the pipeline."""
        self.recovering = False
        """A loss meanwhile is the recovery's own to handle."""
        self.on_lost: Callable[[control.Lost], None] = lambda lost: None
        self.check_size: Callable[[int, int], None] = lambda size, largest: None  # large_steps.py
        self.on_failure: Callable[[StageError], None] | None = None
        self.on_idle_loss: Callable[[], None] = lambda: None
        """Called by the watch thread when it noticed a loss: the engine's thread is asleep, and has to recover."""
        self._check_child = check_child
        self._reading = threading.Lock()
        self._calls: dict[int, RingCall] = {}
        self.flights = Flights(board)
        self._hello: dict[int, control.HelloReply] = {}
        self._session, self._epoch, self._hello_epoch = "", 0, 0
        self._next_call = 0
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="zmqpp-ring-watch", daemon=True)

    def start_watching(self) -> None:
        """From now on a lost stage is noticed even while nothing is asked of the ring."""
        self._watcher.start()

    # ---- requests ----------------------------------------------------------------------------------------

    def hello(
        self, message: control.Hello, timeout_s: float, waiting: Callable[[float], None]
    ) -> list[control.HelloReply]:
        """Greet every stage and wait for all of them; `waiting(seconds)` is called as time passes.

        Raises:
            StageError: a stage refused, or did not answer in time.
        """
        self._session, self._hello = message.session, {}
        self._epoch = self._hello_epoch = message.epoch
        self._send(message, route=Route.NOTICE)
        started = said = time.monotonic()
        while len(self._hello) < self.stages:
            waited = time.monotonic() - started
            if message.epoch and time.monotonic() - said > _REPEAT_S:
                # A reply may have been lost on a link that broke while it was passed on; who has answered repeats it.
                said = time.monotonic()
                self._send(message, route=Route.NOTICE)
            if waited > timeout_s:
                raise RingTimeout(
                    f"the ring of {self.stages} stages did not close in {waited:.0f} s: no word from "
                    f"{self.link.connect}, the last stage's return port; start the missing stages, or check addresses"
                )
            waiting(waited)
            self._read(_POLL_S)
        self._hello_epoch = -1
        return [self._hello[i] for i in range(self.stages)]

    def call(
        self,
        method: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        only: list[int] | None = None,
    ) -> RingFuture:
        """Run a worker method on every stage, or on some; resolves to their results in stage order."""
        self._next_call += 1
        future = RingFuture(self)
        payload = codec.encode((tuple(args), dict(kwargs or {})))
        self._calls[self._next_call] = RingCall(method, range(self.stages) if only is None else only, future)
        self._send(control.Rpc(self._next_call, method, payload, only))
        return future

    def execute(self, step: int, scheduler_output: Any, sample: bool) -> RingFuture:
        """Start a step, once the tokens that it computes have come back; resolves to what the last stage answers.

        Raises:
            DeadlineError: they did not come in a step's time. StageLost: a stage is gone, or it is too large.
        """
        begun_ns, payload = time.monotonic_ns(), plain_step.encode(scheduler_output)
        self.check_size(len(payload), self.link.config.max_control_bytes)
        for earlier in self.flights.awaited(scheduler_output):
            self.read_until(earlier, step_s())
        future = RingFuture(self)
        sampled = self.flights.begin(step, scheduler_output, begun_ns, future)
        tokens = scheduler_output.total_num_scheduled_tokens
        self._send(control.Exec(step, tokens, sample, payload, sampled), tag=step)
        self.board.settle()  # while the stages compute
        return future

    def sample(self, step: int, grammar_output: Any) -> None:
        """Give the last stage the grammar mask that `step` waits for."""
        self._send(control.Sample(step, codec.encode(grammar_output)), tag=step)

    def send_away(self, stages: list[int], reason: str) -> None:
        """Tell these stages that others are awaited in their places."""
        self._send(control.Refused(stages, reason), route=Route.NOTICE)

    def stop(self) -> None:
        """Tell every stage to leave; on trial they stay, and wait for another stage 0."""
        if self._on_trial:
            return
        try:
            self.link.send_control(control.encode(control.Stop()), route=Route.REQUEST, timeout_s=1.0)
        except ZmqppError:
            pass  # Whoever is gone needs no telling.

    def _send(self, message: control.AnyMessage, tag: int = 0, route: Route = Route.REQUEST) -> None:
        self._check_whole()
        try:
            self.link.send_control(control.encode(message), route=route, tag=tag)
        except PeerLostError as error:
            raise self._lost_first_stage(error) from None

    # ---- replies -----------------------------------------------------------------------------------------

    def read_until(self, future: RingFuture, timeout_s: float | None) -> None:
        """Read the ring until `future` is done.

        Raises:
            DeadlineError: not done in `timeout_s`. StageError: a stage is lost.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not future.done():
            left = _POLL_S if deadline is None else min(_POLL_S, deadline - time.monotonic())
            if left <= 0:
                raise DeadlineError(f"no answer from the stages in {timeout_s:.1f} s")
            self._read(left)

    def _read(self, timeout_s: float) -> bool:
        """Take one message off the ring, or wait `timeout_s` for one; False when none came."""
        with self._reading:
            self._check_whole()
            try:
                self._take(control.decode(self.link.recv_control(timeout_s).body))
                return True
            except RecvTimeout:
                self._look_around()
                return False
            except StageError:
                raise
            except ZmqppError as error:
                raise self._lost_last_stage(error) from None

    def _check_whole(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.lost is not None:
            raise StageLost(self.lost.reason)

    def _take(self, message: control.AnyMessage) -> None:
        if isinstance(message, control.StepReply):
            self.flights.take(message)
        elif isinstance(message, control.Report) and 0 <= message.stage < self.stages:
            self.board.take(message.stage, report.decode(message.payload))
        elif isinstance(message, control.RpcReply):
            call = self._calls.get(message.call)
            if call is not None and call.add(message):
                del self._calls[message.call]
        elif isinstance(message, control.HelloReply) and 0 <= message.stage < self.stages:
            if (message.session, message.epoch) == (self._session, self._hello_epoch):
                self._hello[message.stage] = message
        elif isinstance(message, control.Lost | control.Failed) and 0 <= message.stage < self.stages:
            self._hear(message)

    def _hear(self, message: control.Lost | control.Failed) -> None:
        """Raises what a loss is; what another stage 0 was told, or this one before, is settled."""
        if isinstance(message, control.Failed) and message.session in ("", self._session):
            raise self._lose(message.stage, str(message), failed=True)
        now = (self._session, self._epoch)
        if isinstance(message, control.Lost) and (message.session, message.epoch) == now:
            raise self._lose(message.stage, message.reason)

    def _look_around(self) -> None:
        try:
            self._check_child()
        except StageError as error:
            raise self._lose(0, str(error)) from None

    def refuse(self, reason: str, stage: int = control.PIPELINE) -> None:
        """End the pipeline from this side: tell all stages why, and which one is at fault if one is."""
        self._fail(control.Failed(stage, reason))

    # ---- failure -----------------------------------------------------------------------------------------

    def _lost_last_stage(self, error: ZmqppError) -> StageError:
        if self._closing.is_set():  # and the link with it
            return StageError(f"this engine ends: {error}")
        last, gone = self.stages - 1, isinstance(error, PeerLostError)
        what = f" at {self.link.connect} is lost" if gone else ": what comes from it cannot be used"
        return self._lose(last, f"stage {last}{what}: {error}")

    def _lost_first_stage(self, error: PeerLostError) -> StageError:
        try:
            self._check_child()
        except StageError as exited:
            return self._lose(0, str(exited))
        return self._lose(0, f"stage 0's process is lost: {error}")

    def _lose(self, stage: int, reason: str, failed: bool = False) -> StageError:
        """The first loss of an epoch counts; without anybody to recover it is the end."""
        if self.recover is None:
            return self._fail(control.Failed(stage, reason))
        if self.lost is None:
            self.lost = control.Lost(stage, reason, failed)
            self.on_lost(self.lost)
        return StageLost(reason)

    # ---- going on ----------------------------------------------------------------------------------------

    def renew(self, epoch: int) -> None:
        """Open what broke anew; from here on only `epoch` counts.

        Raises:
            ConnectError: the engine's own port could not be had again.
        """
        with self._reading:
            if self.link.previous_error() is not None:
                self.link.reopen_receive()
            if self.link.next_error() is not None:
                self.link.reopen_send()
            self.link.set_epoch(epoch)
            self.lost = None

    def give_up(self, step_output: Any) -> None:
        """Whatever was on the ring is gone: steps get `step_output`, calls an error."""
        self.flights.give_up(step_output)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.future.done():
                error = LostMeanwhile(f"{call.method}: a stage was lost meanwhile; ask again")
                call.future.set_exception(error)

    def _fail(self, notice: control.Failed) -> StageError:
        """The first failure sticks: every future hears it, and so does every stage that is still there."""
        if self.failure is not None:
            return self.failure
        self.failure = error = StageError(str(notice))
        self.board.fail(str(notice), None if notice.stage == control.PIPELINE else notice.stage)
        self.flights.fail(error)
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(error)
        self._calls.clear()
        try:
            decided = control.Failed(
                notice.stage, notice.reason, notice.traceback, self._session, decided=True
            )
            if not self._on_trial:
                self.link.send_control(control.encode(decided), route=Route.NOTICE, timeout_s=0.5)
        except ZmqppError:
            pass  # Stage 0 is among the dead; the others see their links break.
        if self.on_failure is not None:
            self.on_failure(error)
        return error

    @property
    def _on_trial(self) -> bool:
        """This stage 0 replaces another one and was not ready yet: the stages do without it should it fail."""
        return self.recover is None and bool(os.environ.get(TRIAL_VARIABLE))

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_S) and self.failure is None:
            # Whoever waits for a reply sees the failure itself; look only when nobody does.
            try:
                while self.lost is None and not self._reading.locked() and self._read(0):
                    pass
            except StageLost:
                self.on_idle_loss()
            except StageError:
                break
            self.on_tick()
        self.on_tick()

    def close(self) -> None:
        """Stop watching and close the link; what is queued is sent first."""
        self._closing.set()
        if self._watcher.is_alive() and self._watcher is not threading.current_thread():
            self._watcher.join(2.0)
        self.link.close(1.0)
