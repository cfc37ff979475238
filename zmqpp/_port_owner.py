"""Who listens on a TCP port or Unix socket of this machine, as far as /proc tells this user."""

from __future__ import annotations

import os
from pathlib import Path

_LISTEN = "0A"
"""State column of /proc/net/tcp. Source: proc(5), include/net/tcp_states.h."""
_LONGEST = 80
_ACCEPTS = "00010000"
"""Flags column of /proc/net/unix, __SO_ACCEPTCON. Source: proc(5)."""


def port_owner(port: int) -> str | None:
    """`pid 4711 (python server.py)` for the listener on `port`; None when it cannot be told."""
    return _owner(_listening_inodes(port))


def path_owner(path: str) -> str | None:
    """The same for the listener on the Unix socket at `path`."""
    rows = (line.split(maxsplit=7) for line in _lines(Path("/proc/net/unix"))[1:])
    return _owner({row[6] for row in rows if len(row) == 8 and row[7] == path and row[3] == _ACCEPTS})


def _owner(inodes: set[str]) -> str | None:
    if not inodes:
        return None
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _holds(entry, inodes):
            return f"pid {entry.name} ({_command(entry)})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(Path(table))[1:]:
            columns = line.split()
            if len(columns) > 9 and columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        names = os.listdir(process / "fd")
    except OSError:
        return False  # gone, or not ours to look into
    for name in names:
        try:
            target = os.readlink(process / "fd" / name)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            return True
    return False


def _command(process: Path) -> str:
    try:
        raw = (process / "cmdline").read_bytes()
    except OSError:
        return "unknown command"
    # Anybody's words: on one line, and nothing in them that steers a terminal.
    words = "".join(sign if sign.isprintable() else " " for sign in raw.decode(errors="replace"))
    text = " ".join(words.split())
    if len(text) > _LONGEST:
        return f"{text[:_LONGEST]}..."
    return text or "unknown command"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
