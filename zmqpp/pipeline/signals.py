"""Turning SIGINT, SIGTERM and SIGHUP into one orderly stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequested", "StopSignals"]


class StopRequested(BaseException):
    """A signal asked this process to stop. Not an Exception, so that no `except Exception` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """While entered, the first stop signal raises StopRequested in the main thread.

    Later ones are only counted: that keeps the clean-up which follows safe from a second Ctrl-C.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self._holding = 0
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # What was ignored stays ignored: `nohup` and background jobs of a shell rely on it.
            wanted = [signum for signum in self.SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
            self._previous = {signum: signal.signal(signum, self._on_signal) for signum in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No StopRequested is raised inside; one that came in is raised at the end.

        For steps that must not be torn: between fork and the note of the new pid, for example. May be nested.
        """
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self._pending is not None and not self._holding:
            signum, self._pending = self._pending, None
            raise StopRequested(signum)

    def pause(self, seconds: float) -> None:
        """Wait so long; a stop that is asked for meanwhile raises StopRequested."""
        time.sleep(seconds)

    def mute(self) -> None:
        """From here on signals are only counted: clean-up has begun."""
        self.count += 1

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            return
        if self._holding:
            self._pending = signum
            return
        raise StopRequested(signum)
