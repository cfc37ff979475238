"""One ordinary `vllm serve` without any flag of ours, to compare a pipeline with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from zmqpp.errors import LaunchError
from zmqpp.pipeline.client import is_healthy
from zmqpp.pipeline.guard import Guard
from zmqpp.pipeline.plan import ApiEndpoint
from zmqpp.pipeline.process import StageProcess
from zmqpp.pipeline.signals import StopSignals
from zmqpp.pipeline.stage_log import clear_line

__all__ = ["SingleServer"]

_POLL_S = 0.2
_GRACE_S = 10.0


class SingleServer:
    """Owns: the server's process while entered, also when this one is killed. Thread: the main thread.

    Signals: as `launcher.Launcher`, the first stop signal raises StopRequested.
    """

    def __init__(self, model: str, api: ApiEndpoint, arguments: Sequence[str], log_path: Path) -> None:
        self.api = api
        self._log_path = log_path
        self._command = [
            *[sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model],
            *["--host", api.host, "--port", str(api.port), "--served-model-name", api.model_name],
            *arguments,
        ]
        self._process = StageProcess(log_path)
        self._signals = StopSignals()
        self._guard = Guard(_GRACE_S)
        self._resources = ExitStack()

    def __enter__(self) -> SingleServer:
        with ExitStack() as entering:
            entering.enter_context(self._signals)
            with self._signals.held():
                entering.enter_context(self._guard)
            self._resources = entering.pop_all()
        return self

    def start(self, environment: Mapping[str, str]) -> None:
        with self._signals.held():
            self._guard.watch(self._process.start(self._command, environment))

    def wait_ready(self, timeout_s: float, on_poll: Callable[[], None] | None = None) -> None:
        """Block until it answers on /health.

        Raises:
            LaunchError: it ended, with its own reason, or `timeout_s` passed first.
        """
        deadline = time.monotonic() + timeout_s
        while not is_healthy(self.api.url):
            code = self._process.exit_code()
            if code is not None:
                reason = clear_line(self._log_path)
                raise LaunchError(
                    f"the unsplit model ended (exit code {code}): {reason}; its log is {self._log_path}"
                )
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the unsplit model is not ready after {timeout_s:g} s; its log is {self._log_path}"
                )
            if on_poll is not None:
                on_poll()
            time.sleep(_POLL_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._resources:
            self._signals.mute()
            self._process.terminate()
            deadline = time.monotonic() + _GRACE_S
            while not self._process.is_gone() and time.monotonic() < deadline:
                time.sleep(0.05)
            self._process.reap()
