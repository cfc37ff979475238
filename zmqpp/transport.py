"""The link between two places of the ring, over the C++ engine.

from zmqpp.transport import Link
with Link(bind="127.0.0.1:0", connect=None) as sender, Link(bind=None, connect=sender.bound) as receiver:
    sender.send_dict({"hidden": torch.ones(4, 8)})
    receiver.recv_dict()["hidden"]
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zmqpp import _engine
from zmqpp._link_log import LinkLog, named_stats
from zmqpp._opening import (
    check_bind,
    check_device,
    engine_options,
    forget,
    load_zmq,
    open_engine,
    ordinal_of,
    register,
)
from zmqpp._routes import Control, Relay, Route
from zmqpp._sources import Sources
from zmqpp._wakeups import Wakeups
from zmqpp.config import TransportConfig
from zmqpp.endpoint import Endpoint, bind_endpoint, connect_endpoint
from zmqpp.errors import ConfigError, PeerLostError, RecvTimeout, SequenceError, ZmqppError
from zmqpp.tickets import RecvTicket, SendTicket, seconds_of, tag_of

if TYPE_CHECKING:
    import torch

    from zmqpp._arrival import Arrival
    from zmqpp._manifest_writer import Encoded

__all__ = ["Control", "Link", "RecvTicket", "Relay", "Route", "SendTicket"]


class Link:
    """One place on the ring: a PUSH that binds for the next place, a PULL that connects to the previous one.

    The first error of a half sticks: everything pending on it fails, and every later call. What was fully
    received before is handed out first. The halves fail separately, so that a place that lost its upstream
    can still say so downstream. Any thread may call any method; waits release the GIL and hear signals.

    Args:
        bind: where the next place connects, see `endpoint.bind_endpoint`; None = nothing is sent.
        connect: the previous place's address, see `endpoint.connect_endpoint`; None = nothing is received.
        config: None = `TransportConfig.from_env()`.
        name: of this place, told to the next one.
        previous, next: names for error texts, such as "stage 1".
        relay: what is passed on without Python; needs both halves.
        device: where tensors go that came from a device; None = CPU memory.
        expect: the `name` that the previous place must have given itself; empty: any.
        rank, world_size: given on both sides, the receiver refuses a sender that is not rank - 1.
        lane: in place of the configuration's.
        bear_silence: the previous place is not given up for its silence, only when its connection ends.
    Raises:
        ConfigError: an address, device or setting is wrong. ConnectError: an address is in use, or not of
            this machine.
    """

    def __init__(
        self,
        *,
        bind: str | int | None,
        connect: str | None,
        config: TransportConfig | None = None,
        name: str = "",
        previous: str = "",
        next: str = "",  # the place's word, though Python has a function of that name
        relay: Relay = Relay.NONE,
        device: torch.device | str | None = None,
        expect: str = "",
        rank: int = -1,
        world_size: int = 0,
        lane: str | None = None,
        bear_silence: bool = False,
    ) -> None:
        if bind is None and connect is None:
            raise ConfigError("open: a link needs `bind`, `connect` or both")
        self.config = config or TransportConfig.from_env()
        if lane is not None:
            self.config = replace(self.config, lane=lane)
        self.name = name
        self.previous = previous or "the previous place"
        self.next = next or "the next place"
        self.device = check_device(device)
        where = None if bind is None else bind_endpoint(bind)
        whom = None if connect is None else connect_endpoint(connect)
        self.connect = None if whom is None else str(whom)
        load_zmq()
        options = engine_options(self.config)
        if where is not None:
            check_bind(where, self.config, name)
        options.update(bind=str(where or ""), connect=str(whom or ""), name=name, relay=int(relay))
        options.update(
            previous=self.previous, next=self.next, expect=expect, rank=rank, world_size=world_size
        )
        options["bear_silence"] = bear_silence
        options["device"] = ordinal_of(self.device)
        self._everything = False
        self._engine = open_engine(options, where)
        self.bound: str | None = self._engine.bound() or None
        self._sockets = (_scheme(where), _scheme(whom))
        self._log = LinkLog(
            self._engine, name, self.previous, self.connect, lane_is_open=self.config.lane == "auto"
        )
        self._wakeups = Wakeups(self._engine)
        self._owner = os.getpid()
        self._sources = Sources()
        register(self)

    def send_control(
        self, body: bytes, *, route: Route, tag: int = 0, timeout_s: float | None = None
    ) -> None:
        """Queue `body`, which is copied.

        Raises:
            PoolTimeout: the queue stayed full. PeerLostError, ClosedError: nothing can be sent any more.
            ConfigError: larger than `max_control_bytes`.
        A message without a taker by then fails the sending half: losing it silently would be worse.
        """
        self._engine.send_control(body, int(route), tag, self._seconds(timeout_s))

    def recv_control(self, timeout_s: float) -> Control:
        """The next control message; 0 = only if one is there.

        Raises:
            RecvTimeout: none came, and why if known.
            The receiving half's error, once everything received before was taken.
        """
        got = self._engine.recv_control(timeout_s)
        if got is None:
            self._log.say_refusals()
            raise self._receive_timeout("control message", timeout_s)
        body, route, tag, epoch = got
        return Control(body, Route(route), tag, epoch)

    def isend_dict(
        self, tensors: dict[str, Any], *, tag: int = 0, timeout_s: float | None = None
    ) -> SendTicket:
        """Queue a dict; the ticket tells when the tensors may be overwritten. Until then the link keeps them.

        A dict that the ticket reports as copied, as small ones are at once, has no deadline any more: it stays in
        the queue until the receiver takes it or the link closes. Before that, its deadline takes it back whole,
        even half-way, its ticket gets SendTimeout or ConnectTimeout, and the link stays usable.

        Args:
            tensors: see `_tensors.encode` for what may be in it. With compression, what is packed is copied already.
            tag: the receiver may insist on it.
            timeout_s: seconds until all of it must be copied; None = the configured default.
        Raises:
            UnsupportedError (a TypeError): what is in it. ConfigError (a ValueError): its size; what is not in
                tensors, arrays or large bytes and str is limited to 16 MiB.
            PoolTimeout: the queue stayed full. PeerLostError, ClosedError: nothing can be sent any more.
        """
        seconds = self._seconds(timeout_s)
        encoded, tag = self._encode(tensors), tag_of(tag)
        if encoded.is_on_device():
            return self._isend_from_devices(encoded, tag, seconds)
        ticket = self._engine.send_dict(encoded.manifest, encoded.spans, tag, seconds)
        self._sources.hold(ticket, encoded.owners)
        return SendTicket(ticket, seconds, self._wakeups, self._sources.let_go)

    def _isend_from_devices(self, encoded: Encoded, tag: int, seconds: float) -> SendTicket:
        streams = functools.partial(_arrival().current_streams, encoded.spans)
        ticket = self._engine.send_device_dict(encoded.manifest, encoded.spans, tag, seconds, streams())
        self._sources.hold(ticket, encoded.owners)
        return SendTicket(ticket, seconds, self._wakeups, self._sources.let_go, streams)

    def send_dict(self, tensors: dict[str, Any], *, tag: int = 0, timeout_s: float | None = None) -> None:
        """Send a dict; return when its tensors may be overwritten, those on a device by its current stream.

        Raises:
            As `isend_dict`; SendTimeout.
        """
        seconds = self._seconds(timeout_s)
        encoded, tag = self._encode(tensors), tag_of(tag)
        if encoded.is_on_device():
            return self._isend_from_devices(encoded, tag, seconds).wait(seconds + 5.0)
        ticket = self._engine.send_dict_now(encoded.manifest, encoded.spans, tag, seconds)
        self._sources.hold(ticket, encoded.owners)
        if ticket is not None:
            # The engine ends the ticket at the deadline; a little later means that the engine itself is stuck.
            SendTicket(ticket, seconds, self._wakeups, self._sources.let_go).wait(seconds + 5.0)

    def irecv_dict(self, *, tag: int | None = None, timeout_s: float | None = None) -> RecvTicket:
        """Take the next place in the order of receives; never blocks. `timeout_s` is for its `wait`."""
        self._wakeups.forget_closed()
        return RecvTicket(self, tag, self._seconds(timeout_s))

    def recv_dict(self, *, tag: int | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """The next dict. Raises as `RecvTicket.wait`; after RecvTimeout it is left for the next call."""
        seconds = self._seconds(timeout_s)
        self._wakeups.forget_closed()
        self._check_capture()
        got = self._engine.recv_dict(seconds)
        if got is None:
            self._log.say_refusals()
            raise self._receive_timeout("dict", seconds)
        values, arrival = self._open(got, tag)
        if arrival is not None:
            arrival.hold_back()
        return values

    async def dicts(
        self, *, tag: int | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Every dict that comes, until the previous place closes its link.

        Nothing is taken ahead: who stops iterating leaves the next dict to the next receive. A consumer that is
        slower than the dicts lets other tasks run now and then.

        Args: as `recv_dict`, for each dict.
        Raises:
            As `recv_dict`. PeerLostError: the previous place died.
        """
        turn = time.monotonic()
        while True:
            try:
                values = await self.irecv_dict(tag=tag, timeout_s=timeout_s)
            except PeerLostError as error:
                if error.code == "peer_closed":
                    return
                raise
            yield values
            if time.monotonic() - turn > _TURN_S:  # an await of what is there already lets nobody else run
                await asyncio.sleep(0)
                turn = time.monotonic()

    def wait_peers(self, timeout_s: float | None = None) -> None:
        """Return when the previous place has greeted us and the next one is connected.

        Raises:
            ConnectTimeout: who did not come, and why if known. The halves' errors.
        """
        try:
            self._engine.wait_peers(self._seconds(timeout_s))
        finally:
            self._log.say_refusals()
        self._log.say_lane()

    def next_error(self) -> ZmqppError | None:
        """What the sending half failed with; None while it works, or was not asked for."""
        return _caught(self._engine.check_send)

    def previous_error(self) -> ZmqppError | None:
        """What the receiving half failed with; messages received before may still wait."""
        return _caught(self._engine.check_receive)

    def reopen_send(self, timeout_s: float = 2.0) -> None:
        """The sending half anew, bound where it was: what it held and its error are gone, the next peer is awaited.

        Raises:
            ConnectError: the port was not free within `timeout_s`.
        """
        self._engine.reopen_send(timeout_s)
        self._sources.let_go()

    def reopen_receive(self) -> None:
        """The receiving half anew, to the same address, whose name is looked up again; tensors received stay."""
        self._engine.reopen_receive()
        self._log.forget_lane()

    def use_device(self, device: torch.device | str, everything: bool = False) -> None:
        """From now on received tensors go to `device`; for who learns of it only after the link has opened.

        Args:
            everything: those too that were in CPU memory at the sender, as the activations of a stage on a CPU are.
        Raises:
            ConfigError: it is no device of this machine. DeviceError, PinnedMemoryError: memory cannot be pinned.
        """
        wanted = check_device(device)
        ordinal = ordinal_of(wanted)
        if ordinal >= 0:
            self._engine.use_device(ordinal)
        elif ordinal_of(self.device) >= 0:
            raise ConfigError(
                f"use_device({device!r}): this link takes tensors to {self.device}; open another"
            )
        self.device, self._everything = wanted, everything

    def set_epoch(self, epoch: int) -> None:
        """Mark what is sent from now on with `epoch`, and drop what is received with an older one.

        Once a control message of a newer epoch has come, waiting for a dict fails with PeerLostError until this is
        called: dicts of the older one may never come.
        """
        self._engine.set_epoch(epoch)

    def stats(self) -> dict[str, Any]:
        """What was counted since opening, and how things stand now; always on.

        Lanes:
            lane: how payload moves, "tcp", "ipc" (a Unix socket), "shm", or "cuda_ipc" (as shm, CUDA tensors from
                device to device); of the sending half if there is one.
            send_lane, receive_lane: of each half; None where there is none, or before its peer has agreed.
            lane_reason: why it is not "shm", or why CUDA tensors take "shm" and not "cuda_ipc"; "" if they take the
                best, or were told where to go.
            send_peer_connected, receive_peer_connected: whether the peers are there.
        Counted since opening:
            bytes_sent, bytes_received: heads and bodies.
            messages_sent, messages_received; dicts_sent, dicts_received; control_sent, control_received.
            chunks_sent, chunks_received: pieces of large payloads that went through the socket.
            copies_out, copies_in: copies from source tensors, and into the memory of received ones.
            allocations: of payload memory from the system, by the sending half; doorbells: sleepers that were
                woken in the other process.
            relayed: control messages passed on; stale: what was dropped for its old epoch.
            cancelled: dicts given up half-way, by this sender or by the one it receives from.
            refused: peers that were not let in: with a wrong key or none, or where one is already.
            send_wait_ns: waited for room in the queue, pool or segment; peer_wait_ns: waited for something to come.
        Now:
            in_flight: dicts that were accepted and are not copied yet.
            held_bytes: received payload that tensors still refer to.
        Median and 99th percentile of a dict's transfer, in microseconds:
            send_p50_us, send_p99_us: from its acceptance until its tensors may be overwritten.
            receive_p50_us, receive_p99_us: through the socket, from a dict's first message to its last; through
                shared memory, from its being there until it was taken.
        """
        self._sources.let_go()
        self._log.say_refusals()
        return named_stats(self._engine, *self._sockets)

    def close(self, linger_s: float | None = None) -> None:
        """Refuse new work, send what is queued for up to `linger_s` if the peer is there, free everything.

        Idempotent and silent. In a forked child it does nothing. Tensors that were received stay valid.
        """
        if os.getpid() != self._owner:
            return
        self._log.say_refusals()
        self._engine.close(self.config.linger_s if linger_s is None else linger_s)
        self._wakeups.poke()
        self._sources.let_go()
        forget(self)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the very end of Python, modules are gone; what was open was closed before that.
        if hasattr(self, "_sources") and not is_finalizing():  # else it was never opened
            self.close(0)

    def _seconds(self, timeout_s: float | None) -> float:
        return seconds_of(timeout_s, self.config.timeout_s)

    def _receive_timeout(self, what: str, timeout_s: float) -> RecvTimeout:
        trouble = self._engine.receive_trouble()
        return RecvTimeout(
            f"receive: no {what} from {self.previous} within {timeout_s:g} s{trouble and f' ({trouble})'}",
            op="receive",
        )

    def _takes_to_cuda(self) -> bool:
        return self.device is not None and self.device.type == "cuda"

    def _is_captured(self) -> bool:
        return self._takes_to_cuda() and bool(_arrival().is_captured(self.device))

    def _check_capture(self) -> None:
        """Before a dict is taken."""
        if self._takes_to_cuda():
            _arrival().check_no_capture(self.device)

    def _open(
        self, got: tuple[bytes, _engine.Block | None, int, int], tag: int | None
    ) -> tuple[dict[str, Any], Arrival | None]:
        """The dict that the engine received, if it carries the wanted tag; its tensors may still be on their way."""
        manifest, block, came, _epoch = got
        if tag is not None and came != tag:
            raise SequenceError(f"receive: a dict with tag {came} came from {self.previous}, expected {tag}")
        self._log.say_lane()
        device, most = self.device, self.config.max_dict_bytes
        arrival = _arrival().arrival_of(block, device) if self._takes_to_cuda() else None
        values = _tensors().decode(
            manifest, block, device, self._everything, arrival=arrival, limit_bytes=most
        )
        return values, arrival

    def _encode(self, tensors: dict[str, Any]) -> Encoded:
        encoded: Encoded = _tensors().encode(tensors, self.config.compression)
        if encoded.unpacked_bytes > self.config.max_dict_bytes:
            raise ConfigError(
                f"send: packed tensors of {encoded.unpacked_bytes} bytes, the limit is {self.config.max_dict_bytes}"
            )
        return encoded


_TURN_S = 0.001
"""How long a task may go on with dicts that are there already before other tasks have their turn."""


@functools.cache
def _tensors() -> ModuleType:
    """Loaded with the first dict: links that only carry control messages need no torch."""
    from zmqpp import _tensors as module

    return module


def _arrival() -> ModuleType:
    """Loaded with the first tensor on a device, as `_tensors`."""
    from zmqpp import _arrival as module

    return module


def _caught(check: Callable[[], None]) -> ZmqppError | None:
    try:
        check()
    except ZmqppError as error:
        return error
    return None


def _scheme(of: Endpoint | None) -> str | None:
    return of.scheme if of else None
