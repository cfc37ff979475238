"""ZeroMQ's own protocol by hand, as far as a hostile peer needs it.

Source: ZMTP 3.1, https://rfc.zeromq.org/spec/37/ (greeting, NULL mechanism, framing).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_COMMAND, _LONG = 4, 2


def ready(socket_type: bytes) -> bytes:
    """The READY command of a peer that says to be such a socket."""
    name, value = b"Socket-Type", socket_type
    body = b"\5READY" + bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    return bytes([_COMMAND, len(body)]) + body


def long_frame_header(size: int) -> bytes:
    """Announces a message of one frame of `size` bytes."""
    return bytes([_LONG]) + struct.pack(">Q", size)


def messages_of(said: bytes) -> list[bytes]:
    """The messages of one frame each in what one side of a connection said."""
    at, messages = len(GREETING), []
    while at + 2 <= len(said):
        flags = said[at]
        size, front = (struct.unpack_from(">Q", said, at + 1)[0], 9) if flags & _LONG else (said[at + 1], 2)
        if at + front + size > len(said):
            break
        if not flags & _COMMAND:
            messages.append(bytes(said[at + front : at + front + size]))
        at += front + size
    return messages


def port_of(address: str | None) -> int:
    """Of a `tcp://` address."""
    return int(str(address).rpartition(":")[2])


def shake_hands(connection: socket.socket, socket_type: bytes) -> None:
    """Be such a socket. Returns when the other side has said its READY: what came before that would be no message."""
    connection.sendall(GREETING + ready(socket_type))
    connection.settimeout(5)
    heard = b""
    while len(heard) < len(GREETING) + 2 or len(heard) < len(GREETING) + 2 + heard[len(GREETING) + 1]:
        got = connection.recv(4096)
        if not got:
            raise ConnectionError("the other side hung up")
        heard += got


@contextmanager
def stranger(address: str | None, says: bytes = b"") -> Iterator[socket.socket]:
    """A TCP connection to a link's bind port."""
    with socket.create_connection(("127.0.0.1", port_of(address))) as connection:
        connection.sendall(says)
        yield connection


def is_dropped(connection: socket.socket, within_s: float) -> bool:
    """Whether the other side hangs up by then."""
    connection.settimeout(within_s)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True
