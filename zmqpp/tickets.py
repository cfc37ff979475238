"""Operations in flight: what a send or a posted receive hands back.

A ticket has vLLM's handle interface, `wait()` and `is_completed()` (`Handle` in vllm/distributed/parallel_state.py).
In asyncio it is awaited: `await ticket` is `wait()` that leaves the event loop running, without a thread. It may be
awaited and waited for any number of times, in any loop and thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from operator import index
from typing import Any, SupportsIndex

from zmqpp import _engine
from zmqpp._wakeups import Wakeups
from zmqpp.errors import ConfigError, DeviceError, RecvTimeout, SendTimeout, ZmqppError

__all__ = ["Done", "RecvTicket", "SendTicket", "seconds_of", "tag_of"]


class Done:
    """A handle of something that has happened, such as the metadata vLLM sends apart from the tensors."""

    def is_completed(self) -> bool:
        """True."""
        return True

    def wait(self) -> None:
        """Return at once."""

    def __await__(self) -> Generator[Any, None, None]:
        """Return at once."""
        return
        yield  # what makes it a generator


def seconds_of(timeout_s: Any, otherwise: float) -> float:
    """What a caller gave for a deadline; None: `otherwise`.

    Raises:
        ConfigError: it is no number.
    """
    if timeout_s is None:
        return otherwise
    if not isinstance(timeout_s, (int, float)) or timeout_s != timeout_s:
        raise ConfigError(f"timeout_s={timeout_s!r} must be a number of seconds")
    return timeout_s


def tag_of(given: Any) -> int:
    """What a caller gave for a tag.

    Raises:
        ConfigError: it is no whole number of 64 bits.
    """
    if type(given) is not int and isinstance(given, SupportsIndex):
        given = index(given)
    if type(given) is int and 0 <= given < 1 << 64:
        return given
    raise ConfigError(f"tag={given!r} must be a whole number from 0 to 2**64 - 1")


class SendTicket:
    """A dict on its way. Dropping the ticket is safe: the link keeps the tensors until they were copied.

    Of tensors on CUDA devices: `wait()` makes the stream of each device that is current then wait for the copies, as
    the work of torch.distributed does. They may be overwritten on that stream afterwards, or by anyone once
    `is_completed()`.

    `await ticket` is `wait()` under the ticket's default deadline, but that CUDA tensors are waited for until anyone
    may overwrite them; cancelling it does not stop the send.

    Args:
        ticket: None = it has been sent.
        timeout_s: default of `wait`.
        wakeups: the link's.
        settled: called when a wait has found that the tensors are read no more, so that the link lets go of them.
        streams: asks for the current stream of each device that tensors are on; None: none are.
    """

    def __init__(
        self,
        ticket: _engine.SendTicket | None,
        timeout_s: float,
        wakeups: Wakeups,
        settled: Callable[[], None],
        streams: Callable[[], list[tuple[int, int]]] | None = None,
    ) -> None:
        self._ticket = ticket
        self._streams = streams
        self._settled = settled
        self._timeout_s = timeout_s
        self._wakeups = wakeups

    def is_completed(self) -> bool:
        """True once the tensors may be overwritten by anyone, or the send failed (then `wait` raises).

        Of CUDA tensors: when the copies out are over, by their events; also when the device has failed. Never raises.
        """
        if self._ticket is None:
            return True
        try:
            return self._ticket.is_over()
        except DeviceError:
            return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the tensors may be overwritten; those on a device by its current stream.

        For those on devices the thread is blocked only until the copies have been asked for, which is back-pressure:
        through a socket until the receiver has come, dicts in front have left their devices, and the chunks of
        `pinned_pool_bytes` are free for all of this one; through shared memory while that has no room.

        Raises:
            SendTimeout: not copied yet; the ticket stays valid. The link's error: the send failed.
            UnsupportedError: the current stream captures a CUDA graph. DeviceError: CUDA's own words.
        """
        seconds = seconds_of(timeout_s, self._timeout_s)
        if self._ticket is None:
            return
        if self._streams is not None:
            if not self._ticket.wait_started(seconds):
                raise _not_copied(seconds)
            for device, stream in self._streams():
                self._ticket.hold_back(device, stream)
            return
        if not self._ticket.wait_copied(seconds):
            raise _not_copied(seconds)
        self._settled()

    def __await__(self) -> Generator[Any, None, None]:
        """As `wait()`."""
        return self._until_copied().__await__()

    async def _until_copied(self) -> None:
        if self._ticket is not None:
            await self._wakeups.until(self._ticket.is_settled, self._timeout_s)
            if not self._ticket.wait_copied(0):
                raise _not_copied(self._timeout_s)
            self._settled()

    def wait_sent(self, timeout_s: float | None = None) -> None:
        """Return when ZeroMQ has all of it. Raises as `wait`."""
        seconds = seconds_of(timeout_s, self._timeout_s)
        if self._ticket is not None and not self._ticket.wait_sent(seconds):
            raise SendTimeout(
                f"send: not handed to ZeroMQ within {seconds:g} s; the receiver is not there, or does not keep up"
            )

    def is_sent(self) -> bool:
        """True once ZeroMQ has all of it."""
        return self._ticket is None or self._ticket.is_sent()


def _not_copied(seconds: float) -> SendTimeout:
    return SendTimeout(
        f"send: the tensors were not copied within {seconds:g} s; the receiver is not there, or does not keep up"
    )


class RecvTicket:
    """A place in the order of receives: tickets get dicts in the order they were posted.

    Of tensors that go to a CUDA device: each `wait()` makes the stream that is current then wait for them, whatever
    stream an earlier one was called on.

    `await ticket` is `wait()` under the ticket's default deadline; cancelling it gives the place up, as `cancel()`.

    Args:
        link: the Link it was posted on, which imports this module.
        tag: what the dict must carry; None = any.
        timeout_s: default of `wait`.
    """

    def __init__(self, link: Any, tag: int | None, timeout_s: float) -> None:
        self._link = link
        self._ticket = link._engine.post_dict()
        self._tag = tag
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # of the dict's taking; held by a thread that waits for it
        self._values: dict[str, Any] | None = None
        self._arrival: Any = None  # the Arrival of tensors on their way to a device
        self._error: Exception | None = None

    def is_completed(self) -> bool:
        """True once `wait` would not block.

        With tensors for a CUDA device: once the dict is there and its copies in are over, or failed. The copies are
        begun by `wait` or by this, which then has taken the dict, so that `cancel()` is too late; but by neither
        while the current stream captures a CUDA graph. Never blocks or raises.
        """
        try:
            return self._is_there() and (self._arrival is None or self._arrival.is_over())
        except ZmqppError:
            return True

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The dict; the same one each time.

        Raises:
            RecvTimeout: not there yet, and why if known; the ticket keeps its place.
            SequenceError: another tag came.
            MalformedError: the dict does not decode. ResourceError: no memory for it. The link's error: nothing more
                will come.
            UnsupportedError: the current stream captures a CUDA graph. DeviceError: CUDA's own words.
        """
        seconds = seconds_of(timeout_s, self._timeout_s)
        if not self._done() and not self._take(seconds):
            raise self._link._receive_timeout("dict", seconds)
        return self._result()

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        """As `wait()`."""
        return self._until_taken().__await__()

    async def _until_taken(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        try:
            while not self._done() and not (self._can_take() and self._take(0)):
                if not await self._link._wakeups.until(self._can_take, deadline - time.monotonic()):
                    raise self._link._receive_timeout("dict", self._timeout_s)
        except Exception:
            raise
        except BaseException:  # cancelled, or the task was thrown away
            self.cancel()
            raise
        return self._result()

    def cancel(self) -> bool:
        """Give the place up; its dict goes to the next ticket in order. Never blocks.

        Returns:
            Whether it did: not when the dict was taken before, nor while a thread is inside `wait`.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._done():
                return False
            self._ticket.cancel()
            self._error = RecvTimeout("receive: this ticket was cancelled", op="receive")
            return True
        finally:
            self._release()

    def __del__(self) -> None:
        # A forgotten place would swallow a dict, and the memory it is allowed to take.
        if hasattr(self, "_error") and not self._done():
            self._ticket.cancel()

    def _done(self) -> bool:
        return self._values is not None or self._error is not None

    def _result(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        if self._arrival is not None:
            self._arrival.hold_back()
        return self._values or {}

    def _is_there(self) -> bool:
        if self._done():
            return True
        if not self._link._takes_to_cuda():
            return bool(self._ticket.is_ready())
        return self._can_take() and not self._link._is_captured() and self._take(0)

    def _can_take(self) -> bool:
        """Whether `_take` would not block: a thread that waits for it takes it itself."""
        return self._done() or (not self._lock.locked() and self._ticket.is_ready())

    def _take(self, timeout_s: float) -> bool:
        """Have the dict, or the error it makes; False: it is not there yet."""
        until = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=max(0, min(timeout_s, threading.TIMEOUT_MAX))):
            return False
        try:
            if not self._done():
                self._link._check_capture()
                got = self._ticket.wait(max(0, until - time.monotonic()))
                if got is None:
                    return False
                self._keep(got)
            return True
        finally:
            self._release()

    def _keep(self, got: tuple[bytes, _engine.Block | None, int, int]) -> None:
        try:
            values, self._arrival = self._link._open(got, self._tag)
            self._values = values
        except Exception as error:
            self._error = error
        except BaseException:  # a Ctrl-C is for who waits now, not for who asks again
            self._error = RecvTimeout("receive: an interrupt came while the dict was taken", op="receive")
            raise

    def _release(self) -> None:
        self._lock.release()
        self._link._wakeups.poke()  # tasks that found the lock taken
