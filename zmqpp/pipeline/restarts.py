"""How often what was lost is started anew, and after what pause."""

from __future__ import annotations

import time

__all__ = ["Restarts"]

_CALM_S, _FORGIVEN_S = 5.0, 600.0
"""Ready for so long, and whoever is killed then begins a new row; whoever fails by itself does after the second."""
_MOST_KILLS = 60
"""Within _FORGIVEN_S: what the kernel kills for want of memory comes back again and again, too."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Restarts:
    """Counts. Thread: the supervisor's; `total` may be read by any.

    Args:
        most: in a row; 0: none at all.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self.from_outside = True
        """Whether nothing failed by itself since all were ready. Thread: any."""
        self._most, self._in_a_row = most, 0
        self._ready_at: float | None = None
        self._kills: list[float] = []

    def ready(self) -> None:
        """All stages are."""
        self.from_outside = True
        self._ready_at = time.monotonic()

    def lose(self, *, from_outside: bool) -> bool:
        """Something was lost; True where it may be started anew.

        Args:
            from_outside: a process was killed, and did not fail by itself.
        """
        self.from_outside &= from_outside
        now = time.monotonic()
        calm_s = now - self._ready_at if self._ready_at is not None else 0.0
        self._ready_at = None
        self._kills = [at for at in self._kills if now - at < _FORGIVEN_S] + [now] * from_outside
        forgiven = from_outside and len(self._kills) <= _MOST_KILLS and calm_s > _CALM_S
        if forgiven or calm_s > _FORGIVEN_S:
            self._in_a_row = 0
        return self._in_a_row < self._most

    def start(self) -> None:
        """It is."""
        self._in_a_row += 1
        self.total += 1

    @property
    def pause_s(self) -> float:
        """Before what `start` counted last: none for the first of a row."""
        doubled = _FIRST_PAUSE_S * 2.0 ** (self._in_a_row - 2)
        return min(_LONGEST_PAUSE_S, doubled) if self._in_a_row > 1 else 0.0

    @property
    def limit(self) -> str:
        return f"restart {self._in_a_row} of at most {self._most} in a row"

    @property
    def given_up(self) -> str:
        """What to add to the reason of the last loss."""
        return f"; given up after {self._in_a_row} restarts in a row" if self._in_a_row else ""
