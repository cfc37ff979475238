"""Why the pipeline ended, from the process that knows to the ones that a person or a client sees.

vLLM's API server and its EngineCore are two processes; when the engine ends, the server knows only that it
did. The server names a file in `ZMQPP_FAILURE_FILE` before it starts the engine; the engine writes one line.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn

from zmqpp.errors import ZmqppError
from zmqpp.vllm import compat
from zmqpp.watch.snapshot import STATUS_VARIABLE

FAILURE_VARIABLE = "ZMQPP_FAILURE_FILE"


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
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        stop()
        remove_files()
        os._exit(1)

    threading.Thread(target=watch, name="zmqpp-parent-watch", daemon=True).start()
