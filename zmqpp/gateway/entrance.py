"""Who may come in: all, nobody while the pipeline is drained, or later, while stage 0 is replaced."""

from __future__ import annotations

import asyncio
import threading

from zmqpp.gateway.client import Refusal

__all__ = ["DRAINED", "Entrance"]

_MOST_WAITING = 1024
_LONGEST_WAIT_S = 600.0
DRAINED = "the pipeline is being drained: it takes no new requests"
_KIND = "ServiceUnavailableError"


class Entrance:
    """Counts the requests that run. Thread: `enter` and `leave` the gateway's loop; everything else any.

    Args:
        most_waiting: requests that wait while `hold` is in force; more are refused.
        longest_wait_s: for each of them; then it is refused.
    """

    def __init__(self, most_waiting: int = _MOST_WAITING, longest_wait_s: float = _LONGEST_WAIT_S) -> None:
        self._most_waiting, self._longest_wait_s = most_waiting, longest_wait_s
        self._lock = threading.Lock()
        self._running = 0
        self._draining = self._held = False
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def held(self) -> bool:
        return self._held and not self._draining

    def drain(self) -> None:
        self._set(draining=True, held=self._held)

    def resume(self) -> None:
        self._set(draining=False, held=self._held)

    def hold(self) -> None:
        self._set(draining=self._draining, held=True)

    def release(self) -> None:
        self._set(draining=self._draining, held=False)

    def _set(self, *, draining: bool, held: bool) -> None:
        with self._lock:
            self._draining, self._held = draining, held
            waiting = list(self._waiting.items()) if draining or not held else []
        for future, loop in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:
                pass  # The loop has ended, and those who waited with it.

    async def enter(self) -> None:
        """Returns once the request may go on; `leave` follows then.

        Raises:
            Refusal: it may not.
        """
        deadline = asyncio.get_running_loop().time() + self._longest_wait_s
        while (future := self._try()) is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    await future
            except TimeoutError:
                waited = f"{self._longest_wait_s:g} s"
                raise Refusal(
                    503, _KIND, f"stage 0 is being replaced: waited {waited}; try again later"
                ) from None
            finally:
                with self._lock:
                    self._waiting.pop(future, None)

    def leave(self) -> None:
        """The request has its whole answer, or its client has gone."""
        with self._lock:
            self._running -= 1

    def _try(self) -> asyncio.Future[None] | None:
        """None when it was let in, else what to wait for."""
        with self._lock:
            if self._draining:
                raise Refusal(503, _KIND, DRAINED)
            if not self._held:
                self._running += 1
                return None
            if len(self._waiting) >= self._most_waiting:
                text = f"stage 0 is being replaced, and {self._most_waiting} requests wait already"
                raise Refusal(503, _KIND, f"{text}: try again later")
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._waiting[future] = loop
            return future


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
