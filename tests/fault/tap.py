"""A TCP relay that keeps every byte that went each way, and what can be done with them later."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fault.zmtp import port_of


@dataclass
class Tap:
    """Where to connect, and what was heard so far: from who connects, and from the address behind."""

    where: str
    from_connecting: bytearray = field(default_factory=bytearray)
    from_bound: bytearray = field(default_factory=bytearray)


@contextmanager
def tapped(address: str | None) -> Iterator[Tap]:
    """Relays one connection to `address`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        tap = Tap(f"127.0.0.1:{server.getsockname()[1]}")
        stop = threading.Event()
        thread = threading.Thread(target=_relay, args=(server, port_of(address), tap, stop), name="tap")
        thread.start()
        try:
            yield tap
        finally:
            stop.set()
            thread.join()


def _relay(server: socket.socket, port: int, tap: Tap, stop: threading.Event) -> None:
    server.settimeout(0.05)
    near = None
    while near is None and not stop.is_set():
        try:
            near, _ = server.accept()
        except TimeoutError:
            continue
    if near is None:
        return
    with near, socket.create_connection(("127.0.0.1", port)) as far:
        ways = {near: (far, tap.from_connecting), far: (near, tap.from_bound)}
        while not stop.is_set():
            for source in select.select(list(ways), [], [], 0.05)[0]:
                sink, heard = ways[source]
                got = source.recv(1 << 16)
                if not got:
                    return
                heard += got
                sink.sendall(got)
