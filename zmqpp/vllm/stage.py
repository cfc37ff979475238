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

import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.errors import (
    ConfigError,
    LaunchError,
    PeerLostError,
    RecvTimeout,
    StageError,
    UnsupportedError,
    ZmqppError,
)
from zmqpp.layers import LayerRange
from zmqpp.pipeline.events import emit
from zmqpp.transport import Link, Route
from zmqpp.version import __version__
from zmqpp.vllm import codec, compat
from zmqpp.vllm.options import StageOptions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from zmqpp.vllm.worker import StageWorker

LOAD = "zmqpp.load"
"""Rpc method: build the worker and load this stage's weights."""
STATS = "zmqpp.stats"
"""Rpc method: this stage's link counters."""

_PLAIN_ERRORS = (ValueError, NotImplementedError, ZmqppError)
"""Errors whose text says what to change; others need their traceback."""
_POLL_S = 0.5
_REPORT_S = 2.0
_GRACE_S = 3.0


def describe(error: BaseException) -> str:
    """What an error of vLLM or pydantic says, on one line."""
    errors = getattr(error, "errors", None)
    text = (
        "; ".join(str(e.get("msg", e)) for e in errors())
        if callable(errors)
        else " ".join(str(error).split())
    )
    plain = isinstance(error, _PLAIN_ERRORS)
    return text if plain and text else f"{type(error).__name__}: {text}"


class Stage:
    """One stage on the ring.

    Args:
        options: its place.
        link: opened; `Relay.FORWARD`, or `Relay.RETURN` on the last stage.
        configure: from stage 0's hello to this stage's engine configuration and layer range.
        log: where lines for people go, one call a line.
        startup_s: how long to wait for stage 0's hello.
    """

    def __init__(
        self,
        options: StageOptions,
        link: Link,
        configure: Callable[[control.Hello], tuple[VllmConfig, LayerRange]],
        log: Callable[[str], None],
        startup_s: float,
        step_timeout_s: float,
    ) -> None:
        self.options = options
        self.index = options.stage_idx
        self.link = link
        self.log = log
        self._configure = configure
        self._startup_s = startup_s
        self._step_timeout_s = step_timeout_s
        # A reply may have to wait for the next stage to be started at all.
        self._patience_s = max(startup_s, step_timeout_s)
        self._worker: StageWorker | None = None
        self._config: VllmConfig | None = None
        self._layers: LayerRange | None = None
        self._steps = 0
        self._next_lost_at: float | None = None

    def run(self) -> None:
        """Serve until the engine stops the pipeline.

        Raises:
            ZmqppError: this stage, or another one, cannot go on; the others have been told.
        """
        try:
            self._await_hello()
            while self._handle(self._next()):
                pass
        except StageError:
            raise
        except PeerLostError as error:
            raise self._report_lost(error) from None
        except ZmqppError as error:
            self._tell_others(str(error))
            raise
        except (KeyboardInterrupt, SystemExit):
            self._tell_others("stopped by a signal")
            raise
        except Exception as error:
            self._tell_others(f"{type(error).__name__}: {error}", traceback.format_exc())
            raise
        finally:
            self._say_goodbye()

    # ---- reading the ring --------------------------------------------------------------------------------

    def _await_hello(self) -> None:
        before = "the engine" if self.options.is_first else f"stage {self.index - 1} at {self.link.connect}"
        emit(self.index, "waiting", **{"for": before})
        started, said = time.monotonic(), 0.0
        while True:
            message = self._poll()
            if isinstance(message, control.Hello):
                self._handle(message)
                return
            if message is not None:
                continue
            waited = time.monotonic() - started
            if waited > self._startup_s:
                raise LaunchError(
                    f"stage {self.index}: no word from stage 0 in {waited:.0f} s; it comes through {before}: "
                    f"check that address and that every stage before this one is running"
                )
            if waited - said >= 10 and not self.options.is_first:
                said = waited
                there = (
                    "connected" if self.link.stats()["receive_peer_connected"] else "nobody answers there yet"
                )
                self.log(
                    f"stage {self.index}: waiting for stage 0's settings through {before}: {there} ({waited:.0f} s)"
                )

    def _next(self) -> control.AnyMessage:
        while True:
            message = self._poll()
            if message is not None:
                return message

    def _poll(self) -> control.AnyMessage | None:
        try:
            received = self.link.recv_control(_POLL_S)
        except RecvTimeout:
            self._watch_next()
            return None
        return control.decode(received.body)

    def _watch_next(self) -> None:
        """Stop when the next stage is gone and the engine has not said why within the grace time."""
        error = self.link.next_error()
        if error is None:
            return
        now = time.monotonic()
        self._next_lost_at = self._next_lost_at or now
        if now - self._next_lost_at > _GRACE_S:
            after = "the engine" if self.options.is_last else f"stage {self.index + 1}"
            raise StageError(f"stage {self.index}: {after} is gone, its own log says why; stopping ({error})")

    # ---- acting on what was read -------------------------------------------------------------------------

    def _handle(self, message: control.AnyMessage) -> bool:
        """Act on one message; False ends the loop."""
        if isinstance(message, control.Exec):
            self._run_step(message)
        elif isinstance(message, control.Sample):
            self._run_sample(message)
        elif isinstance(message, control.Rpc):
            self._run_rpc(message)
        elif isinstance(message, control.Hello):
            self._run_hello(message)
        elif isinstance(message, control.Failed):
            raise StageError(str(message))
        elif isinstance(message, control.Stop):
            return False
        return True

    def _run_hello(self, hello: control.Hello) -> None:
        self._check_versions(hello)
        self._config, self._layers = self._configure(hello)
        total_layers = self._config.model_config.get_total_num_hidden_layers()
        self._layers.check_within(total_layers, self.index)
        self._reply(
            control.HelloReply(
                stage=self.index,
                total_layers=total_layers,
                start_layer=self._layers.start,
                end_layer=self._layers.end,
                zmqpp_version=__version__,
                vllm_version=compat.vllm_version(),
                host=socket.gethostname(),
                pid=os.getpid(),
            )
        )

    def _check_versions(self, hello: control.Hello) -> None:
        if hello.protocol != control.PROTOCOL_VERSION:
            raise UnsupportedError(
                f"stage {self.index} speaks zmqpp's stage protocol {control.PROTOCOL_VERSION} (zmqpp {__version__}), "
                f"stage 0 speaks {hello.protocol} (zmqpp {hello.zmqpp_version}): install one zmqpp version everywhere"
            )
        if hello.total_stages != self.options.total_stages:
            raise ConfigError(
                f"stage {self.index} was started with --pipeline-total-stages {self.options.total_stages}, "
                f"stage 0 with {hello.total_stages}: give every stage the same number"
            )
        mine = compat.vllm_version()
        if compat.minor(mine) != compat.minor(hello.vllm_version):
            raise UnsupportedError(
                f"stage {self.index} runs vLLM {mine}, stage 0 runs {hello.vllm_version}: install the same on both"
            )

    def _run_rpc(self, rpc: control.Rpc) -> None:
        """A failing call is the caller's error, as in vLLM's own executors; a failing load ends the stage."""
        args, kwargs = codec.decode(rpc.payload)
        if rpc.method == LOAD:
            self._reply(control.RpcReply(rpc.call, self.index, payload=codec.encode(self._load())))
            return
        try:
            result = (
                self.link.stats() if rpc.method == STATS else self._built().call(rpc.method, args, kwargs)
            )
            reply = control.RpcReply(rpc.call, self.index, payload=codec.encode(result))
        except Exception as error:
            # The caller hears what and where; the way there is for this stage's own log.
            if not isinstance(error, _PLAIN_ERRORS):
                traceback.print_exc()
            reply = control.RpcReply(rpc.call, self.index, error=describe(error))
        self._reply(reply)
        if rpc.method == "compile_or_warm_up_model" and reply.error is None:
            self.log(f"stage {self.index}: ready")
            emit(self.index, "ready")

    def _load(self) -> dict[str, Any]:
        from zmqpp.vllm.worker import StageWorker

        if self._config is None or self._layers is None:
            raise LaunchError(f"stage {self.index}: asked to load before stage 0's settings came")
        layers = dict(start_layer=self._layers.start, end_layer=self._layers.end)
        self._worker = StageWorker(self._config, self.link, self.index, self._layers, self._step_timeout_s)
        emit(self.index, "loading", **layers, total_layers=self._worker.total_layers)
        try:
            report = self._worker.load()
        except (ValueError, NotImplementedError) as error:
            if isinstance(error, ZmqppError):
                raise
            raise ConfigError(
                f"stage {self.index}: vLLM cannot load this stage: {describe(error)}"
            ) from error
        self.log(
            f"stage {self.index}: layers {report.layers} of {report.total_layers}, {report.parameters:,} parameters, "
            f"{report.parameter_bytes / 1e9:.1f} GB, loaded in {report.seconds:.1f} s"
            if report.parameter_bytes >= 5e7
            else f"stage {self.index}: layers {report.layers} of {report.total_layers}, {report.parameters:,} parameters, "
            f"{report.parameter_bytes / 1e6:.1f} MB, loaded in {report.seconds:.1f} s"
        )
        loaded = dict(
            layers,
            total_layers=report.total_layers,
            parameters=report.parameters,
            bytes=report.parameter_bytes,
            seconds=report.seconds,
        )
        emit(self.index, "loaded", **loaded)
        return {**loaded, "tensors_read": report.tensors_read, "bytes_read": report.bytes_read}

    def _run_step(self, step: control.Exec) -> None:
        output = self._built().execute(step.step, codec.decode(step.payload))
        self._steps += 1
        if not self.options.is_last or not step.tokens:
            return
        if output is None and step.sample:
            output = self._built().sample(None)
        if output is not None:
            self._reply(control.StepReply(step.step, codec.encode(output)))

    def _run_sample(self, sample: control.Sample) -> None:
        if self.options.is_last:
            output = self._built().sample(codec.decode(sample.payload))
            self._reply(control.StepReply(sample.step, codec.encode(output)))

    def _built(self) -> StageWorker:
        if self._worker is None:
            raise LaunchError(f"stage {self.index}: asked to run before it was loaded")
        return self._worker

    def _reply(self, message: control.AnyMessage) -> None:
        self.link.send_control(control.encode(message), route=Route.REPLY, timeout_s=self._patience_s)

    # ---- the end -----------------------------------------------------------------------------------------

    def _report_lost(self, error: PeerLostError) -> StageError:
        """The link to the previous place broke: the cause is what a notice says, else that place itself."""
        known = self._known_failure()
        if known is not None:
            return StageError(str(known))
        if self.options.is_first:
            lost = control.Failed(0, "stage 0: its engine process is gone")
        else:
            before = self.index - 1
            lost = control.Failed(before, f"stage {before} at {self.link.connect} is lost: {error}")
        self._send_failed(lost)
        return StageError(str(lost))

    def _known_failure(self) -> control.Failed | None:
        """A notice that arrived before the link broke and was not read yet."""
        while True:
            try:
                message = control.decode(self.link.recv_control(0).body)
            except ZmqppError:
                return None
            if isinstance(message, control.Failed):
                return message

    def _tell_others(self, reason: str, trace: str = "") -> None:
        emit(self.index, "failed", reason=reason)
        self._send_failed(control.Failed(self.index, reason, trace))

    def _send_failed(self, failed: control.Failed) -> None:
        try:
            self.link.send_control(control.encode(failed), route=Route.NOTICE, timeout_s=_REPORT_S)
        except ZmqppError:
            pass  # The next place is gone too; it reports for itself.

    def _say_goodbye(self) -> None:
        stats = self.link.stats()
        emit(
            self.index,
            "stopped",
            sent_bytes=stats["bytes_sent"],
            received_bytes=stats["bytes_received"],
            steps=self._steps,
        )
        self.link.close(_REPORT_S)
