"""The gateway's server: uvicorn on a thread of the launcher's process."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING

import uvicorn

from zmqpp._port_owner import port_owner
from zmqpp.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["GatewayServer", "check_address"]

_GRACE_S = 1
"""How long open responses may take to finish after `stop`; then they are ended."""
_START_S = 10.0
_STOP_S = 15.0


def check_address(host: str, port: int) -> None:
    """Raise ConfigError when nobody could listen there now: `start` would say the same, but later."""
    _listen(host, port).close()


class GatewayServer:
    """Serves `app` on `host`:`port` between `start` and `stop`.

    Owns one thread with an event loop, and one listening socket. Leaves signals, and the process's logging, alone.
    Thread: `start` and `stop` from any thread but its own; `stop` may be repeated.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host = host
        self._port = port
        config = uvicorn.Config(
            app,
            loop="asyncio",  # uvloop gains little here, and keeps a pipe for as long as the process lives
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            # The headers are stage 0's, and so is the word on which proxies are trusted.
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=30,
        )
        self._server = _Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen; returns when requests are taken.

        Raises:
            ConfigError: the address cannot be listened on; says who does.
        """
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), name="zmqpp-gateway", daemon=True)
        self._thread.start()
        if not self._server.up.wait(_START_S) or not self._thread.is_alive():
            listener.close()
            raise LaunchError(f"the gateway on {self.url} did not start within {_START_S:g} s")

    def stop(self) -> None:
        """Take no more requests, end the open ones, wait for the thread; seconds at most."""
        self._server.should_exit = True
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_STOP_S)

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if _is_bare_ipv6(host) else f"http://{host}:{self._port}"

    def __enter__(self) -> GatewayServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        finally:
            listener.close()
            self._server.up.set()


class _Server(uvicorn.Server):
    """Says when it is up, and lets what is open end in words: uvicorn alone cancels it twice in one breath."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=_GRACE_S)
        open_still = set(self.server_state.tasks)
        for task in open_still:
            task.cancel()
        if open_still:
            await asyncio.wait(open_still, timeout=_GRACE_S)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    place = f"--host {host} --port {port}"
    if not 0 <= port <= 65535:
        raise ConfigError(f"{place}: a port is a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"{place}: no address to listen on: {error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it: a client whose host vanished is noticed, and its generation aborted.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{place}: {_mistake(error, port)}") from error
    return listener


def _mistake(error: OSError, port: int) -> str:
    number = error.errno
    if number == errno.EADDRINUSE:
        return f"port {port} is in use by {port_owner(port) or 'another process'}; give another --port"
    if number == errno.EACCES:
        return f"port {port} needs root; give a --port above 1023"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address; give one of its own, or 0.0.0.0 for all"
    return os.strerror(number) if number else str(error)


def _is_bare_ipv6(host: str) -> bool:
    return ":" in host and not host.startswith("[")
