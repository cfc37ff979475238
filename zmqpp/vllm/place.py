"""One stage's place on the ring: what it reads, answers and tells the others.

Thread: the stage's main thread. Every wait is cut into polls, so that signals are heard and the next
stage's end is noticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from zmqpp import control
from zmqpp.errors import (
    LaunchError,
    PeerLostError,
    ProtocolError,
    RecvTimeout,
    RemoteError,
    StageError,
    ZmqppError,
)
from zmqpp.pipeline.events import TRIAL_VARIABLE, emit
from zmqpp.transport import Link, Route
from zmqpp.vllm.options import StageOptions

_POLL_S = 0.5
_SAY_S = 10.0
"""Between two lines that say what is being waited for."""
_TELL_S = 2.0
_FAREWELL_S = 3.0
_REJOIN_POLL_S = 0.05
"""How soon a neighbour that went while the engine is waited for is noticed."""


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
        self.in_use = False
        """Of a pipeline that has served: the engine alone decides whether it is over."""
        self._patience_s = patience_s
        self.on_trial = bool(os.environ.get(TRIAL_VARIABLE))
        """This stage replaces another one and was not ready yet: the others do without it should it fail."""
        self._hello: control.Hello | None = None
        self._hello_reply: control.HelloReply | None = None
        self._lost = ""
        """Who is missed here, for the line with which this stage gives up."""
        self._just_greeted = False
        """This stage has answered a hello, and heard nothing else of its epoch."""
        self._owes_hello = False
        """The sending half was opened anew, and the latest hello did not go through it."""

    @property
    def before(self) -> str:
        """Who comes before, and where."""
        return "the engine" if self.index == 0 else f"stage {self.index - 1} at {self.link.connect}"

    def next_lane(self) -> str:
        """How tensors go to the next stage, such as "tcp to stage 1" or "… 1, as fp8"; the last one sends none."""
        stats = self.link.stats()
        if self.is_last or stats["send_lane"] is None:
            return ""
        reason, form = stats["lane_reason"], self.link.config.compression
        packed = "" if form == "none" else f", as {form}"
        return f"{stats['send_lane']} to stage {self.index + 1}{packed}{reason and f' ({reason})'}"

    # ---- reading -----------------------------------------------------------------------------------------

    def first(self, timeout_s: float, log: Callable[[str], None]) -> control.AnyMessage:
        """The first message; says now and then what is being waited for.

        Neighbours may come and go until it is there.

        Raises:
            LaunchError: none came in `timeout_s`. Else as `next`.
        """
        emit(self.index, "waiting", **{"for": self.before})
        started, said = time.monotonic(), 0.0
        while True:
            try:
                # Steps of an epoch that ended are still on their way to a stage which has just come back.
                message = self._that_counts(control.decode(self.link.recv_control(_POLL_S).body))
                if message is not None:
                    return message
            except RecvTimeout:
                self._renew_next()
            except PeerLostError:
                if self.index == 0:
                    raise
                self.link.reopen_receive()
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
            PeerLostError: a neighbour is gone. ProtocolError: wrong bytes.
        """
        while True:
            try:
                message = control.decode(self.link.recv_control(_POLL_S).body)
                self._just_greeted &= isinstance(message, control.Hello)
                return message
            except RecvTimeout:
                if (error := self.link.next_error()) is not None:
                    raise error from None
            while_idle()

    def rejoin(
        self, timeout_s: float, log: Callable[[str], None], wrong: ZmqppError | None = None
    ) -> control.AnyMessage:
        """After a neighbour was lost, or the step given up: the message with which the engine goes on.

        What belongs to the epoch that ended is dropped.

        Args:
            wrong: what came from the place before cannot be used, and nothing more is read of it.
        Raises:
            RemoteError: the pipeline has failed. LaunchError: nothing came in `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        message = self._renew_previous(log, wrong)
        while message is None:
            self._renew_next()
            try:
                message = self._that_counts(control.decode(self.link.recv_control(_REJOIN_POLL_S).body))
            except RecvTimeout:
                pass
            except ProtocolError as error:
                message = self._renew_previous(log, error)
            except ZmqppError:
                message = self._renew_previous(log)
            if message is None and time.monotonic() > deadline:
                gone = f"stage {self.index}: {self._lost}stage 0 did not take the pipeline up again"
                raise LaunchError(f"{gone} in {timeout_s:.0f} s")
        return message

    def _renew_previous(
        self, log: Callable[[str], None], wrong: ZmqppError | None = None
    ) -> control.AnyMessage | None:
        """Open the receiving half anew if it broke or brings `wrong`, and say so downstream.

        Or what is still to be read from it.
        """
        broken = self.link.previous_error()
        if broken is not None and (unread := self._unread()) is not None:
            return unread
        error = broken or wrong
        if error is None:
            return None
        if self.index == 0:
            raise self.explain(error)
        self.link.reopen_receive()
        self._just_greeted = False
        before = self.index - 1
        self._lost = f"{self.before} is lost, and "
        log(f"stage {self.index}: {self.before} is lost ({error}); waiting for it to come back")
        # It may wait for a next place that is still to come: a word without a taker would break the half it is in.
        self._send_lost(before, f"{self.before} is lost: {error}", self._patience_s)
        return None

    def _renew_next(self) -> None:
        """Open the sending half anew if it broke. What the engine waits for may have been lost with the next place."""
        if self.link.next_error() is None:
            return
        self.link.reopen_send()
        self._owes_hello = True
        try:
            if self._hello is not None:
                self.pass_on(self._hello)
            if self._hello_reply is not None:
                self.reply(self._hello_reply)
        except PeerLostError:
            pass  # Whoever came has gone again already: the next look finds that.

    def pass_on(self, hello: control.Hello) -> None:
        """Repeat stage 0's latest word to the next place, where the link could not do so by itself."""
        self._hello, self._hello_reply = hello, self._hello_reply if hello is self._hello else None
        if self._owes_hello and not self.is_last:
            self.link.send_control(control.encode(hello), route=Route.NOTICE, timeout_s=self._patience_s)
        self._owes_hello = False

    def _unread(self) -> control.AnyMessage | None:
        """A message that arrived before the link broke, ends the epoch, and was not read yet."""
        while True:
            try:
                message = self._that_counts(control.decode(self.link.recv_control(0).body))
            except ZmqppError:
                return None
            if message is not None:
                return message

    def _that_counts(self, message: control.AnyMessage) -> control.AnyMessage | None:
        """What is not of the epoch that ended: all, if the engine has not begun with anything in this one."""
        if isinstance(message, control.Failed):
            return message if message.decided or not self.in_use else None
        greets = isinstance(message, control.Hello | control.Stop)
        return message if greets or self._just_greeted else None

    # ---- writing -----------------------------------------------------------------------------------------

    def reply(self, message: control.AnyMessage) -> None:
        """Answer the engine."""
        if isinstance(message, control.HelloReply):
            self._hello_reply, self._just_greeted = message, True
        self.link.send_control(control.encode(message), route=Route.REPLY, timeout_s=self._patience_s)

    def tell(self, failed: control.Failed) -> None:
        """Tell everyone downstream, and through the engine everyone else; on trial, the launcher alone."""
        emit(failed.stage, "lost" if self.in_use else "failed", reason=failed.reason)
        failed.session = self._hello.session if self._hello is not None else ""
        if self.on_trial:
            return
        try:
            self.link.send_control(
                control.encode(failed), route=Route.NOTICE, timeout_s=_FAREWELL_S + _TELL_S
            )
            self._await_next()
        except ZmqppError:
            pass  # The next place is gone too; it reports for itself.

    def tell_lost(self, reason: str) -> None:
        """Tell the engine that this stage was killed, for all that it could do about it."""
        emit(self.index, "lost", reason=reason)
        if not self.on_trial:
            self._send_lost(self.index, reason, _TELL_S)

    def _send_lost(self, stage: int, reason: str, timeout_s: float) -> None:
        lost = control.Lost(stage, reason)
        if self._hello is not None:
            lost.session, lost.epoch = self._hello.session, self._hello.epoch
        try:
            self.link.send_control(control.encode(lost), route=Route.REPLY, timeout_s=timeout_s)
        except ZmqppError:
            pass  # The next place is gone too, and the one behind it says so.

    def _await_next(self) -> None:
        """The next place may be about to connect: a notice that is queued is lost when this one closes."""
        deadline = time.monotonic() + _FAREWELL_S
        while time.monotonic() < deadline and self.link.next_error() is None:
            if self.link.stats()["send_peer_connected"]:
                return
            time.sleep(0.05)

    def explain(self, error: ZmqppError) -> StageError:
        """Why the engine's place is gone: what a notice said, else that it is. The others wait for another stage 0."""
        known = self._unread()
        if isinstance(known, control.Failed):
            return RemoteError(str(known))
        return RemoteError(f"stage 0: its engine process is gone ({error})")

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
    """Tell the next stage, and through it all others, why this one never came; waits a little for it to connect.

    On trial nobody is told: they wait for another one.
    """
    if os.environ.get(TRIAL_VARIABLE):
        return
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
