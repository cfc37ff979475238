"""Where orders come in: a Unix socket in the log folder, for the user who runs the pipeline and for nobody else.

One connection is one order: a JSON object on one line, then a line of JSON for every line told, the last with "code".
The socket is reached through a descriptor of its folder: no path is too long, and none leads elsewhere meanwhile.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from zmqpp.errors import ConfigError
from zmqpp.pipeline.orders import Drain, Entrance, Order, Orders, Restart, Resume
from zmqpp.pipeline.stage_name import read_stage

__all__ = ["SOCKET_NAME", "OrderServer", "folder_path", "peer_user"]

SOCKET_NAME = "orders.sock"
_MOST_BYTES = 64 * 1024
_MOST_CONNECTIONS = 8
_READ_S = 5.0
_POLL_S = 0.5


class OrderServer:
    """Owns the socket, and a thread that accepts with one a connection. Thread: `start` and `stop` the main one.

    Args:
        folder: of the logs; the caller holds its lock.
    """

    def __init__(self, folder: Path, orders: Orders, entrance: Entrance) -> None:
        self._folder, self._orders, self._entrance = folder, orders, entrance
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._talking: set[threading.Thread] = set()

    def __enter__(self) -> OrderServer:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with folder_path(self._folder) as place:
                path = Path(place, SOCKET_NAME)
                path.unlink(missing_ok=True)  # Of a pipeline that was killed: the folder is ours alone.
                os.fchmod(listener.fileno(), 0o600)  # Which `bind` gives to the name, on Linux.
                listener.bind(str(path))
                listener.listen()
        except OSError as error:
            # Some file systems have no sockets; the pipeline serves all the same.
            listener.close()
            where = f"{self._folder / SOCKET_NAME} cannot be made: {error.strerror or error}"
            print(f"zmqpp: warning: {where}; zmqpp restart and drain will find no pipeline", file=sys.stderr)
            return self
        listener.settimeout(_POLL_S)
        self._listener = listener
        self._thread = threading.Thread(
            target=self._accept, args=(listener,), name="zmqpp-orders", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orders.close(
            "the pipeline is being stopped" if error is None else f"the pipeline ends: {error}"
        )
        listener, self._listener = self._listener, None
        if listener is not None and self._thread is not None:
            self._thread.join()
            listener.close()
            with suppress(OSError):
                (self._folder / SOCKET_NAME).unlink()
        for thread in list(self._talking):
            thread.join(_READ_S)

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is not None:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection,), name="zmqpp-order", daemon=True)
            self._talking.add(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        """One order, until its last line is told; who asked may leave before, and it goes on."""
        try:
            with connection, suppress(OSError):
                connection.settimeout(_READ_S)
                if peer_user(connection) not in (os.geteuid(), 0):
                    return
                if not self._room.acquire(blocking=False):
                    return _tell(connection, "too many orders at once: try again later", 2)
                try:
                    self._obey(connection)
                finally:
                    self._room.release()
        finally:
            self._talking.discard(threading.current_thread())

    def _obey(self, connection: socket.socket) -> None:
        try:
            order = _read(connection)
            if isinstance(order, Resume):
                # At once: it may be what ends the drain that is under way.
                self._entrance.resume()
                return _tell(connection, "requests are taken again", 0)
            self._orders.submit(order)
        except ConfigError as error:
            return _tell(connection, str(error), 2)
        code = None
        while code is None:
            line, code = order.told()
            _tell(connection, line, code)


def _read(connection: socket.socket) -> Order:
    """Raises ConfigError: it is no order."""
    with connection.makefile("rb") as lines:
        words = lines.readline(_MOST_BYTES)
    try:
        asked = json.loads(words)
        kind = asked.pop("order")
        return _KINDS[kind](**asked)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"not an order that this pipeline knows: {error}") from None


def _restart(stages: Any, flags: Any, environment: Any, drain_s: Any) -> Restart:
    return Restart(
        None if stages == "all" else [read_stage(str(stage)) for stage in stages],
        [str(flag) for flag in flags],
        {str(name): str(value) for name, value in environment.items()},
        float(drain_s),
    )


def _drain(timeout_s: Any, stop: Any) -> Drain:
    return Drain(None if timeout_s is None else float(timeout_s), bool(stop))


_KINDS: dict[str, Callable[..., Order]] = {"restart": _restart, "drain": _drain, "resume": Resume}


def _tell(connection: socket.socket, line: str, code: int | None) -> None:
    connection.sendall(json.dumps({"line": line, "code": code}).encode() + b"\n")


@contextmanager
def folder_path(folder: Path) -> Iterator[str]:
    """A short path of a folder: that of a descriptor of this process. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def peer_user(connection: socket.socket) -> int:
    """Whose process is at the other end, as the kernel knows it. Source: unix(7), SO_PEERCRED."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
