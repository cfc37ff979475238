"""How do the two processes of a benchmark talk about what comes next, and hear that the other one failed?"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from zmqpp.bench.payload import Mismatch
from zmqpp.bench.transport import Unavailable


class PeerFailed(Exception):
    """The other process reported an error, ended, or is silent."""


FAILED = "failed"


class Channel:
    """Tagged messages over a pipe of our own processes; payload never travels here."""

    def __init__(self, pipe: Connection, other: str) -> None:
        self._pipe = pipe
        self._other = other

    def send(self, kind: str, value: Any = None) -> None:
        try:
            self._pipe.send((kind, value))
        except OSError:
            raise PeerFailed(f"the {self._other} process has ended") from None

    def recv(self, limit_s: float | None) -> tuple[str, Any]:
        """The next message of any kind; None = wait forever. Raises PeerFailed."""
        try:
            if limit_s is not None and not self._pipe.poll(limit_s):
                raise PeerFailed(f"the {self._other} process said nothing for {limit_s:g} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise PeerFailed(f"the {self._other} process has ended") from None
        return kind, value

    def expect(self, kind: str, limit_s: float) -> Any:
        """The value of the next message of this kind. Raises what the other side failed with."""
        while True:
            got, value = self.recv(limit_s)
            if got == kind:
                return value
            if got == FAILED:
                raise _revived(*value)
            # Anything else belongs to an operation that was given up.

    def fail(self, error: Exception) -> None:
        """Tell the other side, which may wait for us."""
        self.send(FAILED, (type(error).__name__, str(error) or repr(error)))


def _revived(name: str, text: str) -> Exception:
    known = {"Mismatch": Mismatch, "Unavailable": Unavailable, "PeerFailed": PeerFailed}
    return known[name](text) if name in known else PeerFailed(f"{name}: {text}")
