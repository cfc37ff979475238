"""How fast is one TCP connection with nothing above it? What the tcp lane is measured against."""

from __future__ import annotations

import socket
import struct

import torch

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import WAIT_S, Blocking, Place

_LENGTH = struct.Struct("!Q")


class BareSocket(Blocking):
    """A length, then the tensors' bytes; the receiver knows the shapes and reads into tensors it keeps.

    One gathering system call as long as the kernel takes it all: a small dict is one packet and one wake-up.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._received: Tensors = {}
        self._length = bytearray(_LENGTH.size)

    def open(self, place: Place) -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(WAIT_S)
            there = place.swap(server.getsockname())
            if place.far:
                self._socket = socket.create_connection(there, WAIT_S)
            else:
                self._socket, _ = server.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(
            None
        )  # a timeout would cost a poll() before each call; the kernel's own does not
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(WAIT_S), 0))
        return ""

    def prepare(self, like: Tensors) -> None:
        if [tensor.shape for tensor in like.values()] != [tensor.shape for tensor in self._received.values()]:
            self._received = {name: tensor.clone() for name, tensor in like.items()}

    def send(self, tensors: Tensors) -> None:
        assert self._socket is not None
        views = [_bytes_of(tensor) for tensor in tensors.values()]
        parts = [memoryview(_LENGTH.pack(sum(view.nbytes for view in views))), *views]
        taken = self._socket.sendmsg(parts)
        for part in parts:
            if taken < part.nbytes:
                self._socket.sendall(part[taken:])
            taken = max(0, taken - part.nbytes)

    def recv(self) -> Tensors:
        self._fill(memoryview(self._length))
        views = [_bytes_of(tensor) for tensor in self._received.values()]
        (length,) = _LENGTH.unpack(self._length)
        if length != sum(view.nbytes for view in views):
            raise ConnectionError(f"{length} bytes were announced")
        for view in views:
            self._fill(view)
        return self._received

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _fill(self, view: memoryview) -> None:
        assert self._socket is not None
        while view.nbytes:
            count = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionError("the other side closed the connection")
            view = view[count:]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
