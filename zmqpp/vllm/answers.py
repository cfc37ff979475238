"""What the calls that brought a stage up were answered: a stage 0 that comes back asks the same again."""

from __future__ import annotations

from zmqpp import control

__all__ = ["Answers"]

_MOST_BYTES = 64 << 20
"""Of questions and answers; what comes after is not kept, and a stage 0 that comes back has this stage start over."""


class Answers:
    """Method and arguments -> the answer."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], bytes] = {}
        self._bytes = 0

    def to(self, rpc: control.Rpc) -> bytes | None:
        """What this call gave before; None if it was not made."""
        return self._known.get((rpc.method, rpc.payload))

    def keep(self, rpc: control.Rpc, answer: bytes) -> None:
        """For the next time."""
        size = len(rpc.method) + len(rpc.payload) + len(answer)
        if self._bytes + size <= _MOST_BYTES:
            self._bytes += size
            self._known[rpc.method, rpc.payload] = answer
