"""One stage's place on the ring: what it reads, answers and tells the others.

Thread: the stage's main thread. Every wait is cut into polls, so that signals are heard and the next
stage's end is noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from zmqpp import control
from zmqpp.errors import LaunchError, PeerLostError, RecvTimeout, RemoteError, StageError, ZmqppError
from zmqpp.pipeline.events import emit
from zmqpp.transport import Link, Route
from zmqpp.vllm.options import StageOptions

_POLL_S = 0.5
_SAY_S = 10.0
"""Between two lines that say what is being waited for."""
_TELL_S = 2.0
_FAREWELL_S = 3.0
_GRACE_S = 3.0
"""For the engine to say why the next stage is gone, before this stage goes by what it sees itself."""


class Place:
    """A stage's link, with the words of the stage protocol.

    Args:
        options: which stage.
        link: opened; closed by `leave`.
        patience_s: how long a reply may wait; the next stage may not even be started yet.
    """

    def __init__(self, options: StageOptions, link: Link, patience_s: float) -> None:
        self.index = options.stage_idx
        self.link = link
        self.is_last = options.is_last
        self._patience_s = patience_s
        self._next_lost_at: float | None = None

    @property
    def before(self) -> str:
        """Who comes before, and where."""
        return "the engine" if self.index == 0 else f"stage {self.index - 1} at {self.link.connect}"

    def next_lane(self) -> str:
        """How tensors go to the next stage, such as "shm to stage 1"; the last one sends none."""
        stats = self.link.stats()
        if self.is_last or stats["send_lane"] is None:
            return ""
        reason = stats["lane_reason"]
        return f"{stats['send_lane']} to stage {self.index + 1}{reason and f' ({reason})'}"

    # ---- reading -----------------------------------------------------------------------------------------

    def first(self, timeout_s: float, log: Callable[[str], None]) -> control.AnyMessage:
        """The first message; says now and then what is being waited for.

        Raises:
            LaunchError: none came in `timeout_s`. Else as `next`.
        """
        emit(self.index, "waiting", **{"for": self.before})
        started, said = time.monotonic(), 0.0
        while True:
            message = self._poll()
            if message is not None:
                return message
            waited = time.monotonic() - started
            if waited > timeout_s:
                raise LaunchError(
                    f"stage {self.index}: no word from stage 0 in {waited:.0f} s; it comes through {self.before}: "
                    f"check that address, and that every stage before this one is running"
                )
            if waited - said >= _SAY_S and self.index:
                said = waited
                log(self._waiting_line(waited))

    def _waiting_line(self, waited: float) -> str:
        there = "connected" if self.link.stats()["receive_peer_connected"] else "nobody answers there yet"
        return f"stage {self.index}: waiting for stage 0's settings through {self.before}: {there} ({waited:.0f} s)"

    def next(self, while_idle: Callable[[], None]) -> control.AnyMessage:
        """The next message; waits for as long as the neighbours are there, and calls `while_idle` now and then.

        Raises:
            PeerLostError: the place before is gone. RemoteError: the next one is. ProtocolError: wrong bytes.
        """
        while True:
            message = self._poll()
            if message is not None:
                return message
            while_idle()

    def _poll(self) -> control.AnyMessage | None:
        try:
            return control.decode(self.link.recv_control(_POLL_S).body)
        except RecvTimeout:
            self._watch_next()
            return None

    def _watch_next(self) -> None:
        """The next place's end ends this stage too, unless the engine says why within the grace time."""
        error = self.link.next_error()
        if error is None:
            return
        now = time.monotonic()
        self._next_lost_at = self._next_lost_at or now
        if now - self._next_lost_at > _GRACE_S:
            after = "the engine" if self.is_last else f"stage {self.index + 1}"
            raise RemoteError(
                f"stage {self.index}: {after} is gone, its own log says why; stopping ({error})"
            )

    # ---- writing -----------------------------------------------------------------------------------------

    def reply(self, message: control.AnyMessage) -> None:
        """Answer the engine."""
        self.link.send_control(control.encode(message), route=Route.REPLY, timeout_s=self._patience_s)

    def tell(self, failed: control.Failed) -> None:
        """Tell everyone downstream, and through the engine everyone else."""
        emit(failed.stage, "failed", reason=failed.reason)
        try:
            self.link.send_control(
                control.encode(failed), route=Route.NOTICE, timeout_s=_FAREWELL_S + _TELL_S
            )
            self._await_next()
        except ZmqppError:
            pass  # The next place is gone too; it reports for itself.

    def _await_next(self) -> None:
        """The next place may be about to connect: a notice that is queued is lost when this one closes."""
        deadline = time.monotonic() + _FAREWELL_S
        while time.monotonic() < deadline and self.link.next_error() is None:
            if self.link.stats()["send_peer_connected"]:
                return
            time.sleep(0.05)

    def explain(self, error: PeerLostError) -> StageError:
        """Why the place before is gone: what a notice said, else that it is; the latter is told downstream."""
        known = self._unread_failure()
        if known is None:
            lost = f"{self.before} is lost: {error}" if self.index else "stage 0: its engine process is gone"
            known = control.Failed(max(self.index - 1, 0), lost)
            self.tell(known)
        return RemoteError(str(known))

    def _unread_failure(self) -> control.Failed | None:
        """A notice that arrived before the link broke and was not read yet."""
        while True:
            try:
                message = control.decode(self.link.recv_control(0).body)
            except ZmqppError:
                return None
            if isinstance(message, control.Failed):
                return message

    def leave(self, steps: int) -> None:
        """Send what is queued, close, and leave the counters for the launcher."""
        stats = self.link.stats()
        counted = {
            "sent_bytes": stats["bytes_sent"],
            "received_bytes": stats["bytes_received"],
            "steps": steps,
        }
        emit(self.index, "stopped", **counted)
        self.link.close(_TELL_S)


def tell_next(options: StageOptions, reason: str) -> None:
    """Tell the next stage, and through it all others, why this one never came; waits a little for it to connect."""
    after = "the engine" if options.is_last else f"stage {options.stage_idx + 1}"
    try:
        with Link(
            bind=str(options.bind),
            connect=None,
            name=f"stage {options.stage_idx}",
            next=after,
            config=options.transport_config(),
        ) as link:
            link.wait_peers(_FAREWELL_S)
            failed = control.encode(control.Failed(options.stage_idx, reason))
            link.send_control(failed, route=Route.NOTICE, timeout_s=_TELL_S)
    except ZmqppError:
        pass  # Nobody there, or the port is what is wrong.
