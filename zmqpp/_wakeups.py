"""Tasks that await tickets of one link, in any number of event loops, without a thread.

Every loop with waiting tasks watches a duplicate of the link's eventfd. The duplicates share one counter, so the
loop that wakes empties it, looks after its own tasks, and pokes the other loops to do the same.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from zmqpp.errors import ResourceError

if TYPE_CHECKING:
    from zmqpp import _engine

__all__ = ["Wakeups"]


class Wakeups:
    """Wakes the tasks that wait for something of `engine`. Any thread may call any method; none blocks."""

    def __init__(self, engine: _engine.Link) -> None:
        self._engine = engine
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        # Of `_loops`, and of the engine's notices being on while there are any. Recursive: the garbage collector
        # may throw a task away, and so enter `remove`, at any point.
        self._lock = threading.RLock()

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Return True when `holds`, which must not block; False if it does not within `timeout_s`.

        Where others may change it back, look again: it held a moment ago.
        """
        if holds():
            return True
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, woken, False)
        watched = self._watch(loop)
        watched.waiting[woken] = holds
        try:
            # What changed before we were listed wakes nobody; what holds now may not when the task gets its turn.
            return holds() or await woken or holds()
        finally:
            timer.cancel()
            watched.waiting.pop(woken, None)
            if not watched.waiting:
                watched.leave_soon()

    def poke(self) -> None:
        """Have all waiting tasks look again: something changed that the engine gives no notice of."""
        if self._loops:
            for watched in self._watched():
                watched.poke()

    def forget_closed(self) -> None:
        """Let go of tasks whose loop was closed under them: a receive they waited for gives its place up."""
        if self._loops:
            for watched in self._watched():
                if watched.loop.is_closed():
                    watched.close()

    def notice(self, here: _Loop) -> None:
        """The engine's notice, heard in loop `here`."""
        self._engine.drain_notify()
        here.look()
        if len(self._loops) > 1:
            for watched in self._watched():
                if watched is not here:
                    watched.poke()

    def remove(self, watched: _Loop) -> None:
        """Watch no more in this loop."""
        with self._lock:
            if self._loops.get(watched.loop) is watched:
                del self._loops[watched.loop]
                if not self._loops:
                    self._engine.arm_notify(False)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> _Loop:
        watched = self._loops.get(loop)  # only its own thread adds or removes it
        if watched is None:
            self.forget_closed()
            watched = _Loop(loop, self)
            watched.listen(self._engine.notify_fd())
            with self._lock:
                self._loops[loop] = watched
                if len(self._loops) == 1:
                    self._engine.arm_notify(True)
        return watched

    def _watched(self) -> list[_Loop]:
        with self._lock:
            return list(self._loops.values())


class _Loop:
    """What one event loop waits for. Thread: the loop's own, except for `poke`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wakeups: Wakeups) -> None:
        self.loop = loop
        self.waiting: dict[asyncio.Future[bool], Callable[[], bool]] = {}
        self._wakeups = wakeups
        self._fd = -1
        self._leaving = False

    def listen(self, fd: int) -> None:
        if fd < 0:  # the link was just closed: its tickets have failed
            return
        try:
            self._fd = os.dup(fd)  # ours, so that it cannot be closed while the loop polls it
        except OSError as error:
            raise ResourceError(f"await: no descriptor to be woken by: {error}", op="await") from None
        self.loop.add_reader(self._fd, self._wakeups.notice, self)

    def look(self) -> None:
        for woken, holds in self.waiting.copy().items():
            if holds():
                _wake(woken, True)

    def poke(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.look)
        except RuntimeError:  # the loop was closed
            self.close()

    def leave_soon(self) -> None:
        """Stop listening, unless by the loop's next turn somebody waits again, as in a row of awaits."""
        if self._leaving:
            return
        self._leaving = True
        if asyncio._get_running_loop() is self.loop:
            self.loop.call_soon(self._leave)
            return
        try:  # a task that was thrown away, in whatever thread it was collected
            self.loop.call_soon_threadsafe(self._leave)
        except RuntimeError:
            self.close()

    def _leave(self) -> None:
        self._leaving = False
        if not self.waiting:
            if self._fd >= 0:
                self.loop.remove_reader(self._fd)
            self.close()

    def close(self) -> None:
        """The loop polls no more. Tasks that still wait in it, which it was closed under, are let go."""
        self._wakeups.remove(self)
        self.waiting.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _wake(woken: asyncio.Future[bool], held: bool) -> None:
    if not woken.done():
        woken.set_result(held)
