"""How often stages were lost: one count of what two sources tell.

The engine misses a stage that no longer answers, whatever became of it; the launcher sees a process end, the engine's
own included. From the first loss until all stages are ready again, a stage was lost as often as the one of them says
that says more.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Losses"]


class Losses:
    """Thread: the supervisor's; `stages` and `recoveries` may be read by any."""

    def __init__(self) -> None:
        self._settled = 0
        self.recoveries = 0
        """How often all stages were ready again after a loss."""
        self._ended: Counter[int] = Counter()
        self._missed: Counter[int] = Counter()
        self._asked_for: Counter[int] = Counter()

    @property
    def stages(self) -> int:
        """Stages that were lost."""
        return self._settled + self._open

    def ended(self, index: int) -> None:
        """The process of stage `index` did, and nobody had asked for it."""
        self._ended[index] += 1

    def missed(self, index: int) -> None:
        """The engine has lost stage `index`."""
        self._missed[index] += 1

    def ask_for(self, index: int) -> None:
        """The process of stage `index` is ended by us: the engine will miss it, and that is no loss."""
        self._asked_for[index] += 1

    def settle(self) -> bool:
        """All stages are ready. True when there was a loss since they were last."""
        lost = self._open
        self._settled += lost
        self.recoveries += lost > 0
        for counter in (self._ended, self._missed, self._asked_for):
            counter.clear()
        return lost > 0

    @property
    def _open(self) -> int:
        """Since all stages were ready last."""
        return sum(
            max(self._ended[index], self._missed[index] - self._asked_for[index])
            for index in self._ended.keys() | self._missed.keys()
        )
