"""Addresses of links: parsing and checking what users write, and saying what is wrong with it."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from zmqpp.errors import ConfigError, ConnectError

__all__ = ["Endpoint", "bind_endpoint", "check_resolvable", "connect_endpoint"]

_MAX_IPC_PATH = 107
"""Bytes of sun_path less its closing zero. Source: unix(7)."""
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_DEFAULT_BIND_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Endpoint:
    """One address: `tcp` with host and port, or `ipc` with a path."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "ipc":
            return f"ipc://{self.path}"
        return f"tcp://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def bind_endpoint(text: str | int) -> Endpoint:
    """Where to listen: `PORT` (on 127.0.0.1), `HOST:PORT`, `tcp://HOST:PORT`, `tcp://*:PORT` or `ipc:///path`.

    Port 0 asks the system for a free one.

    Raises:
        ConfigError: the text is none of these, the ipc folder does not exist, or the path is a folder.
    """
    text = str(text).strip()
    if text.isdigit():
        text = f"{_DEFAULT_BIND_HOST}:{text}"
    return _parse(text, lowest_port=0)


def connect_endpoint(text: str) -> Endpoint:
    """Whom to connect to: `HOST:PORT`, `tcp://HOST:PORT` or `ipc:///path`.

    Names are resolved when connecting, and again at each attempt.

    Raises:
        ConfigError: the text is none of these.
    """
    endpoint = _parse(str(text).strip(), lowest_port=1)
    if endpoint.host == "*":
        raise ConfigError(f"address {text!r}: `*` means every local address, it names nobody to connect to")
    return endpoint


def check_resolvable(endpoint: Endpoint) -> None:
    """Ask the resolver about the host; names may also appear later, so connecting does not need this.

    Raises:
        ConnectError: the name has no address at the moment.
    """
    if endpoint.scheme != "tcp" or endpoint.host == "*":
        return
    try:
        socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConnectError(
            f"address {endpoint}: the host {endpoint.host!r} does not resolve ({reason})"
        ) from None


def _parse(text: str, lowest_port: int) -> Endpoint:
    if text.startswith("ipc://"):
        return _parse_ipc(text)
    rest = text.removeprefix("tcp://")
    if "://" in rest:
        raise ConfigError(f"address {text!r}: only tcp:// and ipc:// are spoken")
    host, colon, port = rest.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"address {text!r} is not of the form HOST:PORT, for example 10.0.0.7:15550")
    return Endpoint("tcp", host=_host(text, host), port=_port(text, port, lowest_port))


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(text, host[1:-1])
    if ":" in host:
        raise ConfigError(f"address {text!r}: an IPv6 address needs brackets, for example [::1]:15550")
    if host != "*" and not _HOST.fullmatch(host):
        raise ConfigError(f"address {text!r}: {host!r} is no host name or IP address")
    return host


def _ipv6(text: str, host: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        raise ConfigError(f"address {text!r}: {host!r} is no IPv6 address") from None
    return host


def _port(text: str, port: str, lowest: int) -> int:
    if not (port.isascii() and port.isdigit()):
        raise ConfigError(f"address {text!r}: {port!r} is no port number")
    if not lowest <= int(port) <= 65535:
        raise ConfigError(f"address {text!r}: the port must lie within {lowest}..65535")
    return int(port)


def _parse_ipc(text: str) -> Endpoint:
    path = text.removeprefix("ipc://")
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"address {text!r} is not of the form ipc:///absolute/path")
    size = len(os.fsencode(path))
    if size > _MAX_IPC_PATH:
        raise ConfigError(
            f"address {text!r}: the path has {size} bytes, at most {_MAX_IPC_PATH} are possible"
        )
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"address {text!r}: there is no folder {folder!r}")
    if os.path.isdir(path):
        raise ConfigError(f"address {text!r}: {path!r} is a directory; name a file in it")
    return Endpoint("ipc", path=path)
