"""Processes of a session, seen through /proc: a stage and all it has started. Linux only.

A stage leads a session of its own, so its session id is its pid. The leader must not be reaped
before its session has been emptied: as a zombie it keeps its pid from being given to a stranger.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

__all__ = ["kill_session", "session_members", "signal_process"]

_KILL_S, _KILL_POLL_S = 10.0, 0.005


def session_members(session: int) -> list[int]:
    """Pids of the live processes in `session`; zombies do not count."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _lives_in(int(name), session)]


def kill_session(session: int) -> list[int]:
    """SIGKILL everything in `session`, also what is started meanwhile; returns when none is left running.

    A process that the kernel holds, waiting for a dead network disk say, dies only when it is let go: after some
    seconds those are left to it, and returned.
    """
    deadline = time.monotonic() + _KILL_S
    while (members := session_members(session)) and time.monotonic() < deadline:
        for pid in members:
            signal_process(pid, signal.SIGKILL)
        time.sleep(_KILL_POLL_S)
    return members


def signal_process(pid: int, signum: int) -> None:
    """Send a signal; a process that is gone already is no error."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _lives_in(pid: int, session: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # "pid (name) state ppid pgrp session ...": the name may hold spaces and parentheses (proc(5)).
    state, _ppid, _group, member_of = stat[stat.rindex(b")") + 2 :].split()[:4]
    return int(member_of) == session and state not in (b"Z", b"X")
