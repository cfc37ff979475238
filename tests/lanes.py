"""The lanes that this build has, and how a test opens a link on one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tests.links import ANY_PORT, FAST
from zmqpp import communicator
from zmqpp.config import TransportConfig

SOCKET_LANES = ("tcp", "ipc")
LANES = SOCKET_LANES + (("shm",) if "shm" in communicator.LANES else ())
"""Payload through a TCP socket, a Unix socket, a shared segment; the last joins as soon as it is built."""

_FIELDS = {field.name for field in fields(TransportConfig)}


@dataclass(frozen=True)
class Lane:
    """Where links of one lane are opened, and with which settings; `folder` is for socket files."""

    name: str
    folder: Path

    def address(self, name: str = "link") -> str:
        """Where to bind."""
        return f"ipc://{self.folder}/{name}" if self.name == "ipc" else ANY_PORT

    def config(self, **changes: Any) -> TransportConfig:
        """Settings of `FAST` that force this lane, with changes; those of a later build are left out."""
        changes.setdefault("lane", "tcp" if self.name in SOCKET_LANES else self.name)
        return replace(FAST, **{name: value for name, value in changes.items() if name in _FIELDS})
