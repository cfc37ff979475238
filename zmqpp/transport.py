"""The link between two places of the ring, over the C++ engine.

from zmqpp.transport import Link
with Link(bind="127.0.0.1:0", connect=None) as sender, Link(bind=None, connect=sender.bound) as receiver:
    sender.send_dict({"hidden": torch.ones(4, 8)})
    receiver.recv_dict()["hidden"]
"""

from __future__ import annotations

import atexit
import enum
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zmqpp import _engine
from zmqpp._port_owner import path_owner, port_owner
from zmqpp.config import TransportConfig
from zmqpp.endpoint import Endpoint, bind_endpoint, connect_endpoint
from zmqpp.errors import ConfigError, ConnectError, RecvTimeout, ZmqppError
from zmqpp.tickets import RecvTicket, SendTicket

if TYPE_CHECKING:
    import torch

__all__ = ["Control", "Link", "RecvTicket", "Relay", "Route", "SendTicket"]


class Relay(enum.IntEnum):
    """What a link passes on to the next place by itself, before and without Python.

    A REQUEST goes down the ring, a REPLY goes back to the engine unopened, a NOTICE is read by all it passes.
    """

    NONE = 0
    """Nothing: everything is delivered here."""
    FORWARD = 1
    """REQUEST and NOTICE are passed on and delivered, REPLY is passed on only."""
    RETURN = 2
    """The last stage: as FORWARD, but REQUEST ends here."""


class Route(enum.IntEnum):
    """How far a control message travels; LINK ends at the next place, whatever its relay."""

    LINK = 0
    REQUEST = 1
    REPLY = 2
    NOTICE = 3


@dataclass(frozen=True, slots=True)
class Control:
    """One received control message."""

    body: bytes
    route: Route
    tag: int
    epoch: int


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
    ) -> None:
        if bind is None and connect is None:
            raise ConfigError("open: a link needs `bind`, `connect` or both")
        self.config = config or TransportConfig.from_env()
        self.name = name
        self.previous = previous or "the previous place"
        self.next = next or "the next place"
        self.device = check_device(device)
        where = None if bind is None else bind_endpoint(bind)
        whom = None if connect is None else connect_endpoint(connect)
        self.connect = None if whom is None else str(whom)
        _load_zmq()
        options = _engine_options(self.config)
        options.update(bind=str(where or ""), connect=str(whom or ""), name=name, relay=int(relay))
        options.update(
            previous=self.previous, next=self.next, expect=expect, rank=rank, world_size=world_size
        )
        self._engine = _open(options, where)
        self.bound: str | None = self._engine.bound() or None
        self._lane = "ipc" if (where or whom or Endpoint("tcp")).scheme == "ipc" else "tcp"
        self._owner = os.getpid()
        self._in_flight: deque[tuple[_engine.SendTicket, list[Any]]] = deque()
        self._in_flight_lock = threading.Lock()
        _register(self)

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
            tensors: see `_tensors.encode` for what may be in it.
            tag: the receiver may insist on it.
            timeout_s: seconds until all of it must be copied; None = the configured default.
        Raises:
            UnsupportedError (a TypeError): what is in it. ConfigError (a ValueError): its size; what is not in
                tensors, arrays or large bytes and str is limited to 16 MiB.
            PoolTimeout: the queue stayed full. PeerLostError, ClosedError: nothing can be sent any more.
        """
        from zmqpp import _tensors

        seconds = self._seconds(timeout_s)
        encoded = _tensors.encode(tensors)
        self._reap()
        ticket = self._engine.send_dict(encoded.manifest, encoded.spans, tag, seconds)
        if ticket is not None and not ticket.is_settled():
            with self._in_flight_lock:
                self._in_flight.append((ticket, encoded.owners))
        return SendTicket(ticket, seconds)

    def send_dict(self, tensors: dict[str, Any], *, tag: int = 0, timeout_s: float | None = None) -> None:
        """Send a dict; return when its tensors may be overwritten. Raises as `isend_dict`; SendTimeout."""
        # The engine ends the ticket at the deadline; a little later means that the engine itself is stuck.
        self.isend_dict(tensors, tag=tag, timeout_s=timeout_s).wait(self._seconds(timeout_s) + 5.0)

    def irecv_dict(self, *, tag: int | None = None, timeout_s: float | None = None) -> RecvTicket:
        """Take the next place in the order of receives; never blocks. `timeout_s` is for its `wait`."""
        return RecvTicket(self, tag, self._seconds(timeout_s))

    def recv_dict(self, *, tag: int | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """The next dict. Raises as `RecvTicket.wait`; after RecvTimeout it is left for the next call."""
        ticket = self.irecv_dict(tag=tag, timeout_s=timeout_s)
        try:
            return ticket.wait()
        except BaseException:
            ticket.cancel()
            raise

    def wait_peers(self, timeout_s: float | None = None) -> None:
        """Return when the previous place has greeted us and the next one is connected.

        Raises:
            ConnectTimeout: who did not come, and why if known. The halves' errors.
        """
        self._engine.wait_peers(self._seconds(timeout_s))

    def next_error(self) -> ZmqppError | None:
        """What the sending half failed with; None while it works, or was not asked for."""
        return _caught(self._engine.check_send)

    def previous_error(self) -> ZmqppError | None:
        """What the receiving half failed with; messages received before may still wait."""
        return _caught(self._engine.check_receive)

    def set_epoch(self, epoch: int) -> None:
        """Mark what is sent from now on with `epoch`, and drop what is received with an older one."""
        self._engine.set_epoch(epoch)

    def stats(self) -> dict[str, Any]:
        """Counters since opening, whether the peers are connected, and the lane payloads take."""
        counters: dict[str, Any] = self._engine.stats()
        for name in ("send_peer_connected", "receive_peer_connected"):
            counters[name] = bool(counters[name])
        return {**counters, "lane": self._lane}

    def close(self, linger_s: float | None = None) -> None:
        """Refuse new work, send what is queued for up to `linger_s` if the peer is there, free everything.

        Idempotent and silent. In a forked child it does nothing. Tensors that were received stay valid.
        """
        if os.getpid() != self._owner:
            return
        self._engine.close(self.config.linger_s if linger_s is None else linger_s)
        self._reap()
        _open_links.discard(self)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_in_flight_lock"):  # else it was never opened
            self.close(0)

    def _seconds(self, timeout_s: float | None) -> float:
        return self.config.timeout_s if timeout_s is None else timeout_s

    def _receive_timeout(self, what: str, timeout_s: float) -> RecvTimeout:
        trouble = self._engine.receive_trouble()
        return RecvTimeout(
            f"receive: no {what} from {self.previous} within {timeout_s:g} s{trouble and f' ({trouble})'}",
            op="receive",
        )

    def _reap(self) -> None:
        """Let go of tensors that the engine has copied."""
        with self._in_flight_lock:
            while self._in_flight and self._in_flight[0][0].is_settled():
                self._in_flight.popleft()


# ---- opening ---------------------------------------------------------------------------------------------

_open_links: weakref.WeakSet[Link] = weakref.WeakSet()
_EXIT_LINGER_S = 1.0


def _register(link: Link) -> None:
    if not _open_links:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open_links.add(link)


def _close_all() -> None:
    """At exit, while threads that wait in the engine can still be woken and return to Python."""
    for link in list(_open_links):
        link.close(_EXIT_LINGER_S)


def _load_zmq() -> None:
    """Load pyzmq, and let the engine use the libzmq that came with it."""
    from zmq.backend import Socket

    module = __import__(Socket.__module__, fromlist=["_"])
    _engine.load_zmq(getattr(module, "__file__", None) or "")


def _engine_options(config: TransportConfig) -> dict[str, Any]:
    options = asdict(config)
    for name in ("timeout_s", "linger_s"):  # used on this side of the binding
        del options[name]
    return options


def _open(options: dict[str, Any], where: Endpoint | None) -> _engine.Link:
    try:
        return _engine.Link(options)
    except ConnectError as error:
        if where is None or error.code not in ("address_in_use", "address_unavailable"):
            raise
        raise ConnectError(_bind_advice(error, where), op="bind", code=error.code) from None


def _bind_advice(error: ConnectError, where: Endpoint) -> str:
    if error.code == "address_unavailable":
        return f"{error}; {where.host!r} is not an address of this machine: bind to one of its own, or to *"
    is_tcp = where.scheme == "tcp"
    owner = port_owner(where.port) if is_tcp else path_owner(where.path)
    held = f"; it is held by {owner}" if owner else ""
    return f"{error}{held}; on one host give each stage its own {'port' if is_tcp else 'path'}"


def check_device(device: torch.device | str | int | None) -> torch.device | None:
    """Where received tensors shall go.

    Raises:
        ConfigError: it is no device, none of this machine, or none that holds values.
    """
    if device is None:
        return None
    import torch

    try:
        wanted = torch.device(device)
        if (
            wanted.type == "cuda"
        ):  # only counts: opening the device here would take memory, and forbid to fork
            available = (wanted.index or 0) < torch.cuda.device_count()
        else:
            available = wanted.type != "meta" and torch.empty(0, device=wanted).device.type == wanted.type
    except Exception as error:  # each backend has its own
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device!r} cannot be used: {reason[:200]}") from None
    if not available:
        raise ConfigError(f"device={device!r} cannot be used: there is no such device with memory here")
    return wanted


def _caught(check: Callable[[], None]) -> ZmqppError | None:
    try:
        check()
    except ZmqppError as error:
        return error
    return None
