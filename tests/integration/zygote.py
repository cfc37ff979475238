"""Runs `vllm …` command lines in forks of one process that has vLLM imported: seconds instead of tens of them.

The command line goes through vLLM's real `main`: its parser, the plugin entry point, the dispatch.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
"""Of every server under test."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Ended:
    """How a command line ended; `code` is None when it had to be killed."""

    code: int | None
    output: str
    seconds: float


class Zygote:
    """Owns the imported process; `run` forks it once per command line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._running: list[Running] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Running:
        """Fork a command line of `vllm`, or one that begins with a Python file, and let it run."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        log.touch()  # the fork opens it when it gets to run; who waits for a line may read it before
        request = {
            "argv": [*([] if arguments[0].endswith(".py") else ["vllm"]), *arguments],
            "environment": dict(environment or {}),
            "log": str(log),
        }
        self._running.append(Running(self._ask(request), log))
        return self._running[-1]

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, within_s: float = 120.0
    ) -> Ended:
        """Fork a command line and wait for its end."""
        return self.start(arguments, environment).wait(within_s)

    def adopt(self, words: Sequence[str], log: int, environment: Mapping[str, str]) -> int:
        """Fork a command line of `vllm`, to lead a session and be this process's own child; its pid.

        It is killed when this process ends.

        Args:
            words: with what `sys.orig_argv` is to be.
            log: a descriptor, of a file.
            environment: all of it.
        """
        request = {
            "argv": ["vllm", *words[3:]],
            "command": [*words],
            "environment": dict(environment),
            "log": os.readlink(f"/proc/self/fd/{log}"),
            "parent": os.getpid(),
        }
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            pid = self._ask(request)
            while os.getsid(pid) != pid:  # which it leads from when it is our child
                time.sleep(0.001)
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return pid

    def _ask(self, request: dict[str, object]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end_rest(self) -> None:
        """Kill what a failed test has left."""
        for running in self._running:
            running.wait(0)
        self._running.clear()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@dataclass
class Running:
    """A forked command line, in a session of its own."""

    pid: int
    log: Path

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def await_line(self, text: str, within_s: float = 120.0) -> None:
        """Returns once it has said so, or has ended."""
        status = Path(f"{self.log}.status")
        deadline = time.monotonic() + within_s
        while text not in self.log.read_text() and not status.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def wait(self, within_s: float) -> Ended:
        """Its end, or a kill `within_s` from now; its seconds count from its start."""
        status = Path(f"{self.log}.status")
        deadline = time.monotonic() + within_s
        while not status.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        seconds = time.monotonic() - self.started
        code = int(status.read_text()) if status.exists() else None
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return Ended(code, self.log.read_text(), seconds)


def serve_requests() -> None:
    """Main loop of the imported process: one JSON line in, one pid out."""
    # Older versions of vLLM log to stdout while they are imported.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import vllm.entrypoints.cli.serve  # noqa: F401
    from vllm.entrypoints.cli.main import main

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            if "parent" in request:
                give_away(request, main, answers)
            watch(request, main)
        if "parent" not in request:
            print(pid, file=answers, flush=True)


def give_away(request: dict, main, answers) -> None:  # type: ignore[type-arg, no-untyped-def]
    """In the fork: run the command in a further fork, which becomes a child of who asked when this one ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        print(child, file=answers, flush=True)
        os._exit(0)
    while os.getppid() != request["parent"]:
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    os.environ.clear()
    sys.orig_argv = request["command"]
    run(request, main)


def watch(request: dict, main) -> None:  # type: ignore[type-arg, no-untyped-def]
    """In the fork: run the command in a further fork, and leave its exit status beside the log."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        run(request, main)
    _, status = os.waitpid(child, 0)
    part = Path(f"{request['log']}.part")
    part.write_text(str(os.waitstatus_to_exitcode(status)))
    part.rename(f"{request['log']}.status")
    os._exit(0)


def run(request: dict, main) -> None:  # type: ignore[type-arg, no-untyped-def]
    """Be that command, and end with it."""
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    try:
        if sys.argv[0] == "vllm":
            main()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the forks are reaped by the kernel
    serve_requests()
