"""Stop signals for a pipeline that runs on a thread of its own: the main thread, which gets them, passes them on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from zmqpp.pipeline.signals import StopRequested, StopSignals

__all__ = ["RelayedStop"]


class RelayedStop(StopSignals):
    """In place of StopSignals on another thread, which hears of a stop whenever it pauses.

    Thread: `request` any; everything else the one that runs the pipeline.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def request(self, signum: int) -> None:
        """As if the signal had come: the first one raises StopRequested at the next pause, later ones are counted."""
        with self._lock:
            self.count += 1
            if self.count == 1:
                self._pending = signum
        self._woken.set()

    def pause(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()
        with self._lock:
            signum, self._pending = self._pending, None
        if signum is not None:
            raise StopRequested(signum)

    def mute(self) -> None:
        with self._lock:
            self.count += 1
            self._pending = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is raised but by `pause`."""
        yield

    def __enter__(self) -> RelayedStop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
