"""What it takes to open a link, and to close at exit those that are still open."""

from __future__ import annotations

import atexit
import weakref
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from zmqpp import _engine
from zmqpp._port_owner import path_owner, port_owner
from zmqpp.config import TransportConfig
from zmqpp.endpoint import Endpoint
from zmqpp.errors import ConfigError, ConnectError

if TYPE_CHECKING:
    import torch

__all__ = ["check_device", "engine_options", "forget", "load_zmq", "open_engine", "register"]


class _Link(Protocol):
    def close(self, linger_s: float | None = None) -> None: ...


_open_links: weakref.WeakSet[_Link] = weakref.WeakSet()
_EXIT_LINGER_S = 1.0


def register(link: _Link) -> None:
    """Have it closed at exit, if it still is open."""
    if not _open_links:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open_links.add(link)


def forget(link: _Link) -> None:
    """It was closed."""
    _open_links.discard(link)


def _close_all() -> None:
    """At exit, while threads that wait in the engine can still be woken and return to Python."""
    for link in list(_open_links):
        link.close(_EXIT_LINGER_S)


def load_zmq() -> None:
    """Load pyzmq, and let the engine use the libzmq that came with it."""
    from zmq.backend import Socket

    module = __import__(Socket.__module__, fromlist=["_"])
    _engine.load_zmq(getattr(module, "__file__", None) or "")


def engine_options(config: TransportConfig) -> dict[str, Any]:
    """What the engine takes of the configuration."""
    options = asdict(config)
    for name in ("timeout_s", "linger_s"):  # used on this side of the binding
        del options[name]
    return options


def open_engine(options: dict[str, Any], where: Endpoint | None) -> _engine.Link:
    """The engine's link, which binds at `where`.

    Raises:
        ConnectError: it cannot, with what to do about it.
    """
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
        if wanted.type == "cuda":  # only counted: opening it here would take memory, and forbid to fork
            available = (wanted.index or 0) < torch.cuda.device_count()
        else:
            available = wanted.type != "meta" and torch.empty(0, device=wanted).device.type == wanted.type
    except Exception as error:  # each backend has its own
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device!r} cannot be used: {reason[:200]}") from None
    if not available:
        raise ConfigError(f"device={device!r} cannot be used: there is no such device with memory here")
    return wanted
