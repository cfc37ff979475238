"""Going on after a stage was lost: the ring is closed again, the new stage brought up, every request resumed.

    loss noticed -> epoch + 1 -> hello, which waits until the stage is back -> the calls that brought the stages up,
    to the new one -> vLLM's scheduler preempts all that ran -> every stage forgets them and gets them back with what
    they have generated -> the steps that were on the ring return nothing -> vLLM schedules all again

Thread: the engine's own; nothing else runs on it meanwhile, so requests and aborts wait in vLLM's queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.request import RequestStatus

from zmqpp import control
from zmqpp.errors import ConfigError, ConnectError, DeadlineError, RemoteError, ZmqppError
from zmqpp.pipeline.events import emit
from zmqpp.vllm import codec
from zmqpp.vllm.calls import RESTORE
from zmqpp.vllm.engine_core import stop_if_asked, waken
from zmqpp.vllm.init_log import ADAPTER_CALLS, adapter_of
from zmqpp.vllm.ring_future import StageLost
from zmqpp.vllm.sessions import let_go_of_blocks
from zmqpp.vllm.timeouts import recovery_s

if TYPE_CHECKING:
    from zmqpp.vllm.executor import ExternalStageExecutor

logger = init_logger("vllm.zmqpp.recovery")

_MOST_ATTEMPTS = 100
_MOST_FAILURES, _FAILURES_S = 5, 600.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_PORTION_BYTES = 16 << 20


class Recovery:
    """From now on a lost stage of this engine is waited for; `run` is called once per loss.

    Args:
        executor: whose ring this is; its pipeline runs.
        waiting: gives what says how long the ring has been waited for.
    """

    def __init__(
        self, executor: ExternalStageExecutor, waiting: Callable[[], Callable[[float], None]]
    ) -> None:
        self._executor = executor
        self._waiting = waiting
        self._failures: list[float] = []
        """When stages ended for reasons of their own."""
        ring = executor.ring
        ring.recover = self.run
        ring.on_lost = self._tell_lost
        ring.on_idle_loss = lambda: waken(executor.engine)

    def run(self) -> None:
        """Returns when the pipeline runs again.

        Raises:
            StageError: it does not, within ZMQPP_RECOVERY_TIMEOUT_S or at all; every stage has been told.
        """
        self._executor.ring.recovering = True
        try:
            self._run()
        finally:
            self._executor.ring.recovering = False

    def _run(self) -> None:
        ring = self._executor.ring
        lost = ring.lost
        reason = lost.reason if lost is not None else "a stage was lost"
        started = time.monotonic()
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            left_s = recovery_s() - (time.monotonic() - started)
            if left_s <= 0 or (attempt == 1 and self._fails_too_often(lost)):
                break
            try:
                self._bring_back(left_s)
                self._resume()
            except StageLost as again:
                if lost is None or not lost.failed:  # Else it left why, and the rest is that it is gone.
                    reason = str(again)
                logger.info("during recovery: %s", again)
                time.sleep(min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** min(attempt, 10)))
            except ConnectError as error:
                logger.info("during recovery: %s", error)
                time.sleep(_LONGEST_PAUSE_S)
            except DeadlineError:
                break
            except ZmqppError as error:
                if ring.failure is None:
                    ring.refuse(f"{reason}, and cannot be replaced: {error}")
                raise ring.failure or error from None
            else:
                self._tell_recovered(time.monotonic() - started)
                return
        raise self._give_up(reason, time.monotonic() - started)

    def _fails_too_often(self, lost: control.Lost | None) -> bool:
        """Whoever is killed may come back for ever; one that fails while it serves will do so again.

        One that fails as it comes back is the wrong one; the right one is waited for.
        """
        now = time.monotonic()
        if lost is not None and lost.failed:
            self._failures = [*(at for at in self._failures if now - at < _FAILURES_S), now]
        return len(self._failures) > _MOST_FAILURES

    def _give_up(self, reason: str, waited_s: float) -> ZmqppError:
        ring = self._executor.ring
        often = len(self._failures) > _MOST_FAILURES
        ring.refuse(
            f"{reason}; that was the {len(self._failures)}th failure within {_FAILURES_S / 60:.0f} minutes"
            if often
            else f"{reason}; it was not back after {waited_s:.0f} s"
        )
        return ring.failure or RemoteError(reason)

    def _bring_back(self, timeout_s: float) -> None:
        executor, ring = self._executor, self._executor.ring
        executor.epoch += 1
        executor.first.renew()
        ring.renew(executor.epoch)
        replies = executor.greet(timeout_s, self._meanwhile())
        fresh = [reply.stage for reply in replies if not reply.ready]
        for stage in fresh:
            self._count(stage, f"stage {stage} was lost: another process is in its place")
        try:
            executor.fit(replies)
            self._bring_up(fresh)
        except (ConfigError, RemoteError) as error:
            if not fresh:
                raise
            ring.send_away(fresh, str(error))
            raise StageLost(str(error)) from None

    def _bring_up(self, fresh: list[int]) -> None:
        """Raises RemoteError: one of them refuses; not for an adapter that it cannot load."""
        executor = self._executor
        for call in executor.init_log if fresh else ():
            method, args, kwargs = call
            try:
                executor.ring.call(method, args, kwargs, only=fresh).result()
            except RemoteError as error:
                if method not in ADAPTER_CALLS:
                    raise
                executor.bereft.adapters.note(adapter_of(call), str(error))
            else:
                if method == "add_lora":
                    executor.bereft.adapters.found(adapter_of(call))

    def _meanwhile(self) -> Callable[[float], None]:
        say = self._waiting()

        def meanwhile(seconds: float) -> None:
            say(seconds)
            stop_if_asked(self._executor.engine)

        return meanwhile

    def _resume(self) -> None:
        executor, ring = self._executor, self._executor.ring
        scheduler = getattr(executor.engine, "scheduler", None)
        if scheduler is None:
            return  # vLLM is still starting: there are no requests
        executor.engine._process_aborts_queue()
        executor.bereft.end(executor.engine)
        let_go_of_blocks(scheduler)
        scheduler.reset_prefix_cache(reset_running_requests=True)
        scheduler.reset_encoder_cache()  # What was computed of images is gone with a stage, or was never computed.
        for request in scheduler.requests.values():
            if getattr(request, "num_stale_output_tokens", 0):
                request.drop_stale_output = True  # Preempted before the loss, with a step on the ring.
        begun = [r for r in scheduler.requests.values() if r.status == RequestStatus.PREEMPTED]
        requests = [NewRequestData.from_request(request, ()) for request in begun]
        outputs = [list(request.output_token_ids) for request in begun]
        most = min(_PORTION_BYTES, ring.link.config.max_control_bytes // 2)
        for some in _portions(requests, outputs, most):
            ring.call(RESTORE, some).result()
        ring.give_up(EMPTY_MODEL_RUNNER_OUTPUT)
        logger.info("%d requests go on", len(begun))

    # ---- telling -----------------------------------------------------------------------------------------

    def _tell_lost(self, lost: control.Lost) -> None:
        """Thread: whichever reads the ring."""
        logger.warning("%s; requests wait until it is back", lost.reason)
        self._count(lost.stage, lost.reason)

    def _count(self, stage: int, reason: str) -> None:
        """Of several that are lost at once the others are known only when they are back."""
        if self._executor.board.lose(reason, stage):
            emit(stage, "missed", reason=reason)
        self._executor.publisher.publish()

    def _tell_recovered(self, seconds: float) -> None:
        logger.info("the pipeline goes on after %.1f s", seconds)
        self._executor.board.recover(seconds)
        emit(0, "whole", seconds=seconds)
        self._executor.publisher.publish()


def _portions(
    requests: list[Any], outputs: list[list[int]], most: int
) -> Iterator[tuple[list[Any], list[list[int]]]]:
    """All of them, in parts that a message holds: with pictures or embeddings in them they are large together."""
    begin = size = 0
    for end, request in enumerate(requests):
        more = len(codec.encode((request, outputs[end])))
        if size and size + more > most:
            yield requests[begin:end], outputs[begin:end]
            begin, size = end, 0
        size += more
    yield requests[begin:], outputs[begin:]
