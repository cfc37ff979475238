"""Stage 0's own process: a child of vLLM's EngineCore, on the ring like every other stage."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zmqpp.errors import StageError, ZmqppError
from zmqpp.transport import Link, Relay
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.parent_death import die_with_parent, follow_parent
from zmqpp.vllm.warning_lines import show_warnings

_STOP_S = 3.0
"""Less than vLLM's API server gives its engine: a stage that hangs is ended from here."""


class FirstStage:
    """Starts stage 0 and holds the engine's two ends of the ring.

    Owns the child process and the folder of the ipc socket between engine and child.
    """

    def __init__(self, vllm_config: Any, options: StageOptions) -> None:
        # A folder only this user may enter: the socket in it needs no further guard.
        self._folder = tempfile.mkdtemp(prefix="zmqpp-")
        self.link: Link | None = None  # type: ignore[assignment]
        self._reason = ""
        show_warnings()
        here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
        self._report: Connection = here
        endpoint = f"ipc://{self._folder}/engine"
        self._config, self._options, self._endpoint = vllm_config, options, endpoint
        try:
            self.link = Link(
                bind=endpoint,
                connect=str(options.connect),
                name="the engine",
                previous=f"stage {options.total_stages - 1}",
                expect=f"stage {options.total_stages - 1}",
                next="stage 0",
                relay=Relay.NONE,
                config=options.transport_config(),
            )
            self._start(there)
        except BaseException:
            self.close()
            raise
        finally:
            there.close()

    def _start(self, report: Connection) -> None:
        self._process = multiprocessing.get_context("spawn").Process(
            target=run_first_stage,
            args=(
                self._config,
                self._options,
                self._endpoint,
                report,
                multiprocessing.parent_process() is not None,
            ),
            name="zmqpp-stage-0",
        )
        self._process.start()

    def renew(self) -> None:
        """Start the child anew if it is gone."""
        if self._process.is_alive():
            return
        self._process.join()
        self._report.close()
        self._reason = ""
        self._report, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
        try:
            self._start(there)
        finally:
            there.close()

    def check(self) -> None:
        """Raise StageError when the child is gone, with the reason it left."""
        if self._process.is_alive():
            return
        self._process.join()
        raise StageError(self._last_word() or f"stage 0: its process ended ({self._exit()})")

    def _last_word(self) -> str:
        try:
            while self._report.poll(0):
                self._reason = self._report.recv()
        except (EOFError, OSError):
            pass
        return self._reason

    def _exit(self) -> str:
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the child: it leaves by itself when the link closes, else it is killed."""
        if self.link is not None:
            self.link.close(1.0)
        process = getattr(self, "_process", None)
        if process is not None and process.pid is not None:
            process.join(_STOP_S)
            if process.is_alive():
                # It hangs, or is stopped: nothing milder reaches it.
                process.kill()
                process.join(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)


def run_first_stage(
    vllm_config: Any, options: StageOptions, engine: str, report: Connection, engine_has_own_process: bool
) -> None:
    """Main function of the child."""
    from vllm.logger import init_logger
    from vllm.utils.system_utils import decorate_logs, set_process_title

    from zmqpp.vllm import compat
    from zmqpp.vllm.identity import own_range
    from zmqpp.vllm.ranks import Ranks
    from zmqpp.vllm.stage import Stage
    from zmqpp.vllm.warm import warm_up

    # Ctrl-C reaches the whole terminal group; the engine decides when its stages end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if engine_has_own_process:
        # Even a stopped child goes with its engine. Not where the engine lives in a user's thread, which may end.
        die_with_parent()
    else:
        follow_parent(partial(_remove_folder, engine))
    compat.configure_logging(vllm_config)
    set_process_title("zmqpp_stage_0")
    decorate_logs("stage 0")
    show_warnings(0)
    try:
        link = Link(
            bind=str(options.bind),
            connect=engine,
            name="stage 0",
            previous="the engine",
            expect="the engine",
            next="stage 1",
            relay=Relay.FORWARD,
            config=options.transport_config(),
            bear_silence=True,  # an engine that stands still a while; when it dies, this process dies with it
        )
        model = vllm_config.model_config.model
        with Ranks(0, vllm_config.parallel_config.tensor_parallel_size, model) as ranks:
            warm_up(model)
            layers = own_range(options, vllm_config.model_config)
            log = init_logger("vllm.zmqpp.stage").info
            Stage(options, link, lambda _: (vllm_config, layers), ranks, log).run()
    except ZmqppError as error:
        if not _engine_lives():
            _remove_folder(engine)
        _leave(report, str(error))
    except Exception as error:
        _leave(report, f"{type(error).__name__}: {error}", error)


def _remove_folder(engine: str) -> None:
    """Of the endpoint `engine`."""
    shutil.rmtree(Path(engine.removeprefix("ipc://")).parent, ignore_errors=True)


def _engine_lives() -> bool:
    """Else nobody removes what it made; while it does, it starts another child there."""
    parent = multiprocessing.parent_process()
    return parent is not None and parent.is_alive()


def _leave(report: Connection, reason: str, error: Exception | None = None) -> None:
    import traceback

    if error is not None:
        traceback.print_exception(error)
    try:
        report.send(reason)
    except OSError:
        pass  # The engine is gone; nobody is left to tell.
    raise SystemExit(1)
