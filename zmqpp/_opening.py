"""What it takes to open a link, and to close at exit those that are still open."""

from __future__ import annotations

import atexit
import ipaddress
import logging
import weakref
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from zmqpp import _engine
from zmqpp._port_owner import path_owner, port_owner
from zmqpp.config import TransportConfig
from zmqpp.endpoint import Endpoint
from zmqpp.errors import ConfigError, ConnectError
from zmqpp.keys import read_keys

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_bind",
    "check_device",
    "engine_options",
    "forget",
    "load_zmq",
    "open_engine",
    "ordinal_of",
    "register",
]

_log = logging.getLogger("zmqpp")


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
    """What the engine takes of the configuration, with the pipeline's keys.

    Raises:
        ConfigError: the keys cannot be used.
    """
    options = asdict(config)
    for name in (
        "timeout_s",
        "linger_s",
        "compression",
        "curve_dir",
        "require_auth",
    ):  # used on this side of the binding
        del options[name]
    if config.curve_dir:
        keys = read_keys(config.curve_dir)
        options.update(curve_public=keys.public, curve_secret=keys.secret)
    return options


def check_bind(where: Endpoint, config: TransportConfig, name: str, warn: bool = True) -> None:
    """Refuse, or warn once, where other machines could reach a link without keys.

    Raises:
        ConfigError: the configuration requires keys, there are none, and `where` is no loopback address.
    """
    global _warned
    if config.curve_dir or _is_on_this_host(where):
        return
    what_to_do = "run `zmqpp keygen DIR`, and give every stage --pipeline-curve-dir DIR (or ZMQPP_CURVE_DIR)"
    if config.require_auth:
        raise ConfigError(f"{where} is no loopback address, and keys are required there: {what_to_do}")
    if warn and not _warned:
        _warned = True
        who = f"{name}: " if name else ""
        text = (
            "%sbinding %s WITHOUT KEYS: whoever reaches it can read and change what the pipeline computes; %s"
        )
        _log.warning(text, who, where, what_to_do)


_warned = False


def _is_on_this_host(where: Endpoint) -> bool:
    """A name other than localhost may mean anything by the time it is bound."""
    if where.scheme == "ipc" or where.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(where.host).is_loopback
    except ValueError:
        return False


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


def ordinal_of(device: torch.device | None) -> int:
    """The device whose memory the engine shall pin its own for; -1: none, or it cannot reach it."""
    if device is None or device.type != "cuda":
        return -1
    from zmqpp._arrival import is_reached

    return int(device.index) if is_reached() else -1


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
        if wanted.type == "cuda":
            available = (wanted.index or 0) < torch.cuda.device_count()
            if available and wanted.index is None:
                wanted = torch.device("cuda", torch.cuda.current_device())
        else:
            available = wanted.type != "meta" and torch.empty(0, device=wanted).device.type == wanted.type
    except Exception as error:  # each backend has its own
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device!r} cannot be used: {reason[:200]}") from None
    if not available:
        raise ConfigError(f"device={device!r} cannot be used: there is no such device with memory here")
    return wanted
