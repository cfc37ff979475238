"""A stage's loop: read the ring, build the worker, run steps. The same for every stage, 0 included.

    hello  -> this stage's engine configuration and layer range   -> hello reply
    rpc    -> a method of vLLM's worker (the first one loads)      -> rpc reply
    exec   -> forward pass; activations in from the stage before, out to the next
    sample -> the last stage samples                               -> step reply
    failed -> another stage cannot go on: say which and why, stop
    stop   -> close and leave

The frames were forwarded to the next stage by the engine's receive thread before they reach this loop.
Thread: everything here runs on the process's main thread.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.errors import (
    ConfigError,
    LaunchError,
    PeerLostError,
    ProtocolError,
    RemoteError,
    StageError,
    ZmqppError,
)
from zmqpp.layers import LayerRange
from zmqpp.pipeline.events import emit
from zmqpp.transport import Link
from zmqpp.vllm import codec
from zmqpp.vllm.answers import Answers
from zmqpp.vllm.calls import END_TRACE, LOAD, RESTORE, START_TRACE, STATS, WARM_UP
from zmqpp.vllm.greeting import StartOver, check_places, check_unchanged, check_versions, introduction
from zmqpp.vllm.last_engine import forget_engine
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.place import Place
from zmqpp.vllm.ranks import RankKilled, Ranks, end_with_rank
from zmqpp.vllm.reporter import Reporter
from zmqpp.vllm.stage_steps import StageSteps
from zmqpp.vllm.timeouts import recovery_s, startup_s, step_s
from zmqpp.vllm.wording import PLAIN_ERRORS, describe

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from zmqpp.vllm.worker import StageWorker

_ENGINE_FIRST_S = 5.0
"""The engine gives up first, and says why to all it still reaches."""
_FAREWELL_S = 0.2


class Stage:
    """One stage on the ring.

    Args:
        options: its place.
        link: opened; `Relay.FORWARD`, or `Relay.RETURN` on the last stage. Closed when `run` ends.
        configure: from stage 0's hello to this stage's engine configuration and layer range.
        ranks: of its tensor-parallel group.
        log: where lines for people go, one call a line.
    """

    def __init__(
        self,
        options: StageOptions,
        link: Link,
        configure: Callable[[control.Hello], tuple[VllmConfig, LayerRange]],
        ranks: Ranks,
        log: Callable[[str], None],
    ) -> None:
        self.options = options
        self.index = options.stage_idx
        self.place = Place(options, link, max(startup_s(), step_s()))
        self.log = log
        self._configure = configure
        self._ranks = ranks
        ranks.on_loss = self._end_without
        self._config: VllmConfig | None = None
        self._layers: LayerRange | None = None
        self._worker: StageWorker | None = None
        self._reporter: Reporter | None = None
        self._recovery_s = 1.1 * recovery_s() + _ENGINE_FIRST_S
        self._hello: control.Hello | None = None
        self._hello_reply: control.HelloReply | None = None
        self._answers = Answers()
        self._ready = self._was_ready = False
        self._steps: StageSteps | None = None

    def run(self) -> None:
        """Serve until the engine stops the pipeline.

        Raises:
            ZmqppError: this stage, or another one, cannot go on; the others have been told.
        """
        try:
            message = self.place.first(startup_s(), self.log)
            while True:
                try:
                    if not self._handle(message):
                        break
                    message = self.place.next(self._while_idle)
                except (PeerLostError, ProtocolError) as error:
                    message = self._rejoin(error)
        except (RemoteError, StartOver):
            raise
        except (KeyboardInterrupt, SystemExit):
            self._say_farewell()
            raise
        except Exception as error:
            self._tell(error)
            if isinstance(error, ZmqppError):
                raise
            traceback.print_exc()
            raise StageError(f"stage {self.index} failed: {describe(error)}") from None
        finally:
            self.place.leave(self._reporter.recorder.steps if self._reporter else 0)

    def _rejoin(self, error: ZmqppError) -> control.AnyMessage:
        """A neighbour is gone or not to be understood, or the engine began another epoch: what is loaded stays."""
        if self._config is None:
            raise error
        wrong = error if isinstance(error, ProtocolError) else None
        if self.index == 0 and (wrong or self.place.link.previous_error()) is not None:
            raise self.place.explain(error) from None
        return self.place.rejoin(self._recovery_s, self.log, wrong)

    def _say_farewell(self) -> None:
        """Stopped by a signal: one that was running will be replaced, one that starts with all others is missed."""
        if not self.place.in_use and self._hello is not None:
            self.place.tell(control.Failed(self.index, "stopped by a signal"))

    def _tell(self, error: Exception) -> None:
        if isinstance(error, RankKilled) and self.place.in_use:
            self.place.tell_lost(str(error))
            return
        lines = "".join(traceback.format_exception(error))
        self.place.tell(control.Failed(self.index, describe(error), lines))

    def _end_without(self, error: StageError) -> None:
        """A rank is gone, and the main thread waits for it where nothing can reach it. Thread: the ranks' watch."""
        self._tell(error)
        # The notice is still with ZeroMQ, and the link is the other thread's to close.
        time.sleep(_FAREWELL_S)
        end_with_rank(error, self.place.in_use)

    def _hear(self, failed: control.Failed) -> None:
        """Raises RemoteError, where it is over."""
        if failed.decided:
            emit(max(failed.stage, 0), "failed", reason=str(failed), decided=True)
        if failed.decided or not self.place.in_use:
            raise RemoteError(str(failed))

    def _handle(self, message: control.AnyMessage) -> bool:
        """Act on one message; False ends the loop."""
        if isinstance(message, control.Exec | control.Sample):
            self._run(message)
        elif isinstance(message, control.Rpc):
            self._run_rpc(message)
        elif isinstance(message, control.Hello):
            self._run_hello(message)
        elif isinstance(message, control.Failed):
            self._hear(message)
        elif isinstance(message, control.Refused) and self.index in message.stages:
            raise ConfigError(message.reason)
        return not isinstance(message, control.Stop)

    # ---- coming up ---------------------------------------------------------------------------------------

    def _run_hello(self, hello: control.Hello) -> None:
        self.place.in_use |= hello.epoch > 0
        check_versions(hello, self.options)
        if self._hello == hello and self._hello_reply is not None:
            self.place.reply(self._hello_reply)  # The engine repeats itself until it has heard everyone.
            return
        before = self._hello
        if before is not None and hello.session == before.session and hello.epoch < before.epoch:
            return  # It was on its way when the next one had come already.
        self._end_steps()
        self.place.link.set_epoch(hello.epoch)
        self.place.pass_on(hello)
        if self._config is None or self._layers is None:
            self._config, self._layers = self._configure(hello)
        else:
            check_unchanged(before, hello, self.index)
        is_another = before is None or hello.session != before.session
        self._ready = self._ready and not is_another
        self._hello = hello
        if self._worker is not None and self._worker.runs:
            self._worker.forget_requests()
            if is_another:
                forget_engine(self._worker)
        total_layers = self._config.model_config.get_total_num_hidden_layers()
        self._layers.check_within(total_layers, self.index)
        bound = str(self.place.link.bound)
        reply = introduction(self.options, bound, self._layers, total_layers)
        reply.ranks = self._ranks.size
        reply.ready, reply.session, reply.epoch = self._ready, hello.session, hello.epoch
        self._hello_reply = reply
        self.place.reply(reply)

    def _load(self, first: list[int]) -> dict[str, Any]:
        if self._config is None or self._layers is None:
            raise LaunchError(f"stage {self.index}: asked to load before stage 0's settings came")
        check_places(first, self.options)
        self._worker = self._ranks.worker(self._config, self.place.link, self._layers, first[self.index])
        emit(self.index, "loading", **self._worker.report.span())
        try:
            report = self._worker.load()
        except ZmqppError:
            raise
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"stage {self.index}: vLLM cannot load this stage: {describe(error)}"
            ) from error
        self.log(str(report))
        emit(self.index, "loaded", **report.counts())
        return report.counts()

    # ---- running -----------------------------------------------------------------------------------------

    def _run(self, message: control.Exec | control.Sample) -> None:
        if not self._ready:
            return  # Meant for the process that was here before, and kept for this one by the stage before.
        if self._steps is None:
            self._steps = StageSteps(self.place, self._built(), self._reporting())
        if isinstance(message, control.Exec):
            self._steps.run(message)
            self._while_idle()
        else:
            self._steps.sample(message)

    def _end_steps(self) -> None:
        """What is answered still is of the epoch that ends."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _run_rpc(self, rpc: control.Rpc) -> None:
        """A failing call is the caller's error, as in vLLM's own executors; a failing load ends the stage."""
        if rpc.only is not None and self.index not in rpc.only:
            return
        if not self._ready and (known := self._known_answer(rpc)) is not None:
            self.place.reply(control.RpcReply(rpc.call, self.index, payload=known))
            if rpc.method == WARM_UP:
                self._get_ready()
            return
        if rpc.method == LOAD and self._worker is None:
            args, _ = codec.decode_arguments(rpc.payload)
            loaded = codec.encode([self._load(*args)])
            self._answers.keep(rpc, loaded)
            self.place.reply(control.RpcReply(rpc.call, self.index, payload=loaded))
            return
        try:
            answer = codec.encode(self._call(rpc.method, *codec.decode_arguments(rpc.payload)))
            if not self._ready:
                self._answers.keep(rpc, answer)
            reply = control.RpcReply(rpc.call, self.index, payload=answer)
        except (PeerLostError, StartOver):
            raise
        except Exception as error:
            # The caller hears what and where; the way there is for this stage's own log.
            if not isinstance(error, PLAIN_ERRORS):
                traceback.print_exc()
            reply = control.RpcReply(rpc.call, self.index, error=describe(error))
        self.place.reply(reply)
        if rpc.method == WARM_UP and reply.error is None:
            self._get_ready()

    def _known_answer(self, rpc: control.Rpc) -> bytes | None:
        """What this call gave when the stage was brought up before: it is as it was then.

        Raises:
            StartOver: it was brought up otherwise, for an earlier stage 0.
        """
        known = self._answers.to(rpc)
        if known is None and self._was_ready:
            raise StartOver(f"stage {self.index}: stage 0 came back and asks for another {rpc.method[:80]}")
        return known

    def _get_ready(self) -> None:
        """From here on steps come, and are counted."""
        self._ready = self._was_ready = self.place.in_use = True
        self.place.on_trial = False
        lane = self.place.next_lane()
        self._reporter = Reporter(self.place, self._built())
        self.log(f"stage {self.index}: ready{lane and f', {lane}'}")
        emit(self.index, "ready", lane=lane)

    def _while_idle(self) -> None:
        self._ranks.check()
        if self._steps is not None:
            self._steps.check()
        if self._reporter is not None:
            self._reporter.report_if_due()

    def _call(self, method: str, args: Any, kwargs: Any) -> list[Any]:
        """A result of each of this stage's workers, or the one of the stage itself."""
        if method == STATS:
            return [self.place.link.stats()]
        if method == RESTORE:
            return [self._built().restore(*args)]
        if method in (START_TRACE, END_TRACE):
            return [self._reporting().trace(method == START_TRACE)]
        return self._built().call(method, args, kwargs)

    def _reporting(self) -> Reporter:
        if self._reporter is None:
            raise LaunchError(f"stage {self.index}: asked for a trace before it was ready")
        return self._reporter

    def _built(self) -> StageWorker:
        if self._worker is None:
            raise LaunchError(f"stage {self.index}: asked to run before it was loaded")
        return self._worker
