"""A small process that outlives a killed launcher just long enough to end its stages.

    python -m zmqpp.pipeline.guard GRACE_S        reads one stage pid a line from its standard input

The launcher holds the other end of that pipe; the kernel closes it however the launcher ends, `kill -9`
included. At that moment every session still named is stopped. `-PID` says that one has ended, an empty line
that all have.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import TracebackType

from zmqpp.pipeline.session import kill_session, session_members, signal_process

__all__ = ["Guard", "main"]


class Guard:
    """The launcher's side: tells the guard process what to end.

    Owns: the guard process, from entering to leaving. Blocks: only when leaving, until the guard has ended.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        command = [sys.executable, "-m", "zmqpp.pipeline.guard", str(self._grace_s)]
        # A session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            bufsize=0,  # what a killed guard did not take must not come up again when the pipe is closed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def watch(self, pid: int) -> None:
        """End the session led by `pid` if this process dies."""
        self._write(f"{pid}\n")

    def forget(self, pid: int) -> None:
        """That session has ended: its number may soon be a stranger's."""
        self._write(f"-{pid}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._write("\n")
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def _write(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # Someone killed the guard; the stages' parent-death signal remains.


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    grace_s = float(sys.argv[1])
    sessions: list[int] = []
    for line in sys.stdin:
        if not line.strip():
            return
        if line.startswith("-"):
            sessions = [session for session in sessions if session != -int(line)]
        else:
            sessions.append(int(line))
    _end(sessions, grace_s)


def _end(sessions: list[int], grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    for session in sessions:
        if session in session_members(session):
            signal_process(session, signal.SIGTERM)
    while any(session_members(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    for session in sessions:
        kill_session(session)


if __name__ == "__main__":
    main()
