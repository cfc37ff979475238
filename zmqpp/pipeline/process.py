"""One stage's process: in a session of its own, stopped together with all it has started. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zmqpp.errors import LaunchError
from zmqpp.pipeline.session import kill_session, session_members, signal_process

__all__ = ["StageProcess", "ended_by_signal", "killed_by", "spawn", "told_as_launch_error"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_REAP_S = 1.0


def spawn(command: list[str], log: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that leads a session, writes to the descriptor `log`, and is killed when this thread ends."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )


class StageProcess:
    """Owns: the process and everything in its session, until `reap`. Thread: one, which must outlive the process,
    because the parent-death signal is sent when the *thread* that started the child ends (prctl(2)).
    """

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start it with its output in the log; returns its pid, which is its session's id too."""
        with self.log_path.open("wb") as log:
            self._process = spawn(list(command), log.fileno(), {**os.environ, **environment})
        return self._process.pid

    @property
    def pid(self) -> int:
        """0 while there is none."""
        process = self._process
        return process.pid if process is not None else 0

    def keep_log(self) -> None:
        """Put the log aside as `stage_I.log.1`, so that a next start does not overwrite why there was one."""
        if self.log_path.exists():
            self.log_path.replace(f"{self.log_path}.1")

    def exit_code(self) -> int | None:
        """None while it runs, else its exit status (-N: killed by signal N). Never blocks, does not reap."""
        if self._exit_code is None and self._process is not None:
            # WNOWAIT leaves a zombie, which keeps pid and session id ours (see session.py).
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._exit_code

    def terminate(self) -> None:
        """Ask it to stop in order: SIGTERM to the process itself, which passes it on as it sees fit."""
        if self._process is not None and self.exit_code() is None:
            signal_process(self._process.pid, signal.SIGTERM)

    def is_gone(self) -> bool:
        """True when nothing of its session runs any more."""
        return self._process is None or (
            self.exit_code() is not None and not session_members(self._process.pid)
        )

    def reap(self) -> None:
        """Kill what is left of the session, then collect the exit status. Idempotent; seconds at most."""
        if self._process is None:
            return
        kill_session(self._process.pid)
        self.exit_code()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            pass  # The kernel holds it, and it is dead as soon as it is let go; subprocess collects it then.
        self._process, self._exit_code = None, None


def ended_by_signal(code: int) -> str:
    """`was stopped by SIGTERM`, of an exit code; empty where it was no signal. One that is obeyed adds 128."""
    if code < 0:
        return killed_by(-code)
    stopped = next((s for s in (signal.SIGTERM, signal.SIGINT) if code == 128 + s), None)
    return f"was stopped by {stopped.name}" if stopped else ""


def killed_by(signum: int) -> str:
    """How a person is told of it: `was killed by SIGSEGV`."""
    try:
        name = signal.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    memory = ", perhaps by the kernel for want of memory (see dmesg)" if signum == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"


def _die_with_parent() -> Callable[[], None]:
    """What runs in the child between fork and exec: SIGTERM for it when its parent dies."""
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # The parent may have died before the call; then no signal will come.
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


@contextmanager
def told_as_launch_error() -> Iterator[None]:
    """What this machine does not allow, as a LaunchError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise LaunchError(f"the stages cannot be started: {where}{error.strerror or error}") from error
