"""Why the pipeline ended, from the process that knows to the ones that a person or a client sees.

vLLM's API server and its EngineCore are two processes; when the engine ends, the server knows only that it
did. The server names a file in `ZMQPP_FAILURE_FILE` before it starts the engine; the engine writes one line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from zmqpp.errors import ZmqppError
from zmqpp.vllm import compat
from zmqpp.vllm.parent_death import follow_parent
from zmqpp.watch.snapshot import STATUS_VARIABLE

FAILURE_VARIABLE = "ZMQPP_FAILURE_FILE"
_LOOK_S, _ENDING_S = 0.5, 2.0


def open_file() -> None:
    """Name the file for this process's children; the caller removes it with `remove_files`."""
    fd, path = tempfile.mkstemp(prefix="zmqpp-failure-")
    os.close(fd)
    os.environ[FAILURE_VARIABLE] = path
    os.environ[STATUS_VARIABLE] = f"{path}.status"


def remove_files() -> None:
    """The file, and the status beside it (see watch/snapshot.py)."""
    path = os.environ.get(FAILURE_VARIABLE)
    for name in (path, f"{path}.status", f"{path}.status.part") if path else ():
        Path(name).unlink(missing_ok=True)


def record(reason: str) -> None:
    """Keep the first reason; without a file (engine inside the caller's process) do nothing."""
    path = os.environ.get(FAILURE_VARIABLE)
    if path and not read():
        Path(path).write_text(reason)


def read() -> str:
    """The recorded reason, or an empty string."""
    path = os.environ.get(FAILURE_VARIABLE)
    try:
        return Path(path).read_text(errors="replace") if path else ""
    except OSError:
        return ""


def say(error: object) -> None:
    """One line for a person."""
    compat.write_line(sys.stderr, f"zmqpp: error: {error}")


def stop_starting(error: ZmqppError) -> NoReturn:
    """The engine cannot start: raise inside the caller's process, end quietly in vLLM's engine process.

    vLLM answers an exception there with two tracebacks; a SystemExit leaves the one line that matters.
    """
    record(str(error))
    if multiprocessing.parent_process() is None:
        raise error
    if not os.environ.get(FAILURE_VARIABLE):
        say(error)
    raise SystemExit(1)


def watch_parent(stop: Callable[[], None]) -> None:
    """End this engine process when the API server is gone, even by kill -9: its stages must not stay behind."""

    def leave() -> None:
        stop()
        remove_files()

    follow_parent(leave)


class EngineWatch:
    """Ends this API server by SIGKILL as soon as that has ended its engine.

    vLLM would answer everybody with an error of its own, and end seconds later, as if it had failed of a request.
    Killed, it is replaced at once, and the entry of several replicas asks another one.
    Thread: its own; `stopping` any.
    """

    def __init__(self) -> None:
        self._engines: list[Any] = []
        self._is_stopping = False
        threading.Thread(target=self._watch, name="zmqpp-engine-watch", daemon=True).start()

    def stopping(self) -> None:
        """The server ends its engine, unless that has ended already: then it only tidies up."""
        self._is_stopping |= not self._were_killed()

    def _watch(self) -> None:
        while not self._is_stopping:
            children = multiprocessing.active_children()  # those that have ended are not among them
            self._engines += [
                child for child in children if "EngineCore" in child.name and child not in self._engines
            ]
            if wait([engine.sentinel for engine in self._engines], timeout=_LOOK_S):
                break
        if self._were_killed() and not self._is_stopping:
            say("the engine of stage 0 was killed by SIGKILL, perhaps by the kernel for want of memory")
            remove_files()
            os.kill(os.getpid(), signal.SIGKILL)

    def _were_killed(self) -> bool:
        until = time.monotonic() + _ENDING_S
        for engine in self._engines:
            ended = wait([engine.sentinel], timeout=0)
            # How it ended is known a moment later, to whichever thread asked the system first.
            while ended and engine.exitcode is None and time.monotonic() < until:
                time.sleep(0.002)
        return any(engine.exitcode == -signal.SIGKILL for engine in self._engines)
