"""Operations in flight: what a send or a posted receive hands back.

A ticket has vLLM's handle interface, `wait()` and `is_completed()` (`Handle` in vllm/distributed/parallel_state.py).
"""

from __future__ import annotations

import threading
from typing import Any

from zmqpp import _engine
from zmqpp.errors import RecvTimeout, SendTimeout, SequenceError, ZmqppError

__all__ = ["Done", "RecvTicket", "SendTicket"]


class Done:
    """A handle of something that has happened, such as the metadata vLLM sends apart from the tensors."""

    def is_completed(self) -> bool:
        """True."""
        return True

    def wait(self) -> None:
        """Return at once."""


class SendTicket:
    """A dict on its way. Dropping the ticket is safe: the link keeps the tensors until they were copied."""

    def __init__(self, ticket: _engine.SendTicket | None, timeout_s: float) -> None:
        self._ticket = ticket
        self._timeout_s = timeout_s

    def is_completed(self) -> bool:
        """True once the tensors may be overwritten, or the send failed (then `wait` raises)."""
        return self._ticket is None or self._ticket.is_settled()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the tensors may be overwritten.

        Raises:
            SendTimeout: not copied yet; the ticket stays valid. The link's error: the send failed.
        """
        seconds = self._timeout_s if timeout_s is None else timeout_s
        if self._ticket and not self._ticket.wait_copied(seconds):
            raise SendTimeout(
                f"send: the tensors were not copied within {seconds:g} s; "
                "the receiver is not there, or does not keep up"
            )

    def wait_sent(self, timeout_s: float | None = None) -> None:
        """Return when ZeroMQ has all of it. Raises as `wait`."""
        seconds = self._timeout_s if timeout_s is None else timeout_s
        if self._ticket and not self._ticket.wait_sent(seconds):
            raise SendTimeout(
                f"send: not handed to ZeroMQ within {seconds:g} s; the receiver is not there, or does not keep up"
            )

    def is_sent(self) -> bool:
        """True once ZeroMQ has all of it."""
        return self._ticket is None or self._ticket.is_sent()


class RecvTicket:
    """A place in the order of receives: tickets get dicts in the order they were posted.

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
        self._lock = threading.Lock()
        self._values: dict[str, Any] | None = None
        self._error: ZmqppError | None = None

    def is_completed(self) -> bool:
        """True once `wait` would not block."""
        return self._done() or self._link._engine.is_dict_ready(self._ticket)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The dict; the same one each time.

        Raises:
            RecvTimeout: not there yet, and why if known; the ticket keeps its place.
            SequenceError: another tag came.
            MalformedError: the dict does not decode. The link's error: nothing more will come.
        """
        with self._lock:
            if not self._done():
                self._take(self._timeout_s if timeout_s is None else timeout_s)
            if self._error is not None:
                raise self._error
            return self._values or {}

    def cancel(self) -> None:
        """Give the place up; its dict goes to the next ticket in order."""
        with self._lock:
            if not self._done():
                self._link._engine.cancel_dict(self._ticket)
                self._error = RecvTimeout("receive: this ticket was cancelled", op="receive")

    def __del__(self) -> None:
        # A forgotten place would swallow a dict, and the memory it is allowed to take.
        if hasattr(self, "_error") and not self._done():
            self._link._engine.cancel_dict(self._ticket)

    def _done(self) -> bool:
        return self._values is not None or self._error is not None

    def _take(self, timeout_s: float) -> None:
        from zmqpp import _tensors

        got = self._link._engine.wait_dict(self._ticket, timeout_s)
        if got is None:
            raise self._link._receive_timeout("dict", timeout_s)
        manifest, block, tag, _epoch = got
        try:
            if self._tag is not None and tag != self._tag:
                raise SequenceError(
                    f"receive: a dict with tag {tag} came from {self._link.previous}, expected {self._tag}"
                )
            self._values = _tensors.decode(manifest, block, self._link.device)
        except ZmqppError as error:
            self._error = error
