"""How fast is pyzmq, used as well as its interface allows: zero-copy frames, tensors as views of them?"""

from __future__ import annotations

import warnings
from typing import Any

import msgspec
import torch
import zmq

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import WAIT_S, Blocking, Place

_QUEUE_BYTES = 64 << 20
"""What may wait on each side; libzmq counts messages, so the number follows from their size."""


class PyzmqFrames(Blocking):
    """A PUSH and a PULL each way, as zmqpp has them. One multipart message a dict: header, then a frame a tensor.

    libzmq sends in a thread of its own, so that several dicts are in flight without further ado.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._context: zmq.Context[Any] | None = None
        self._place: Place | None = None
        self._waiting = self._round = 0
        self._push: Any = None
        self._pull: Any = None

    def open(self, place: Place) -> str:
        # A frame's memory is ours alone, whatever its flag says.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        self._place = place
        self._context = zmq.Context()
        return ""

    def prepare(self, like: Tensors) -> None:
        """Connect anew where another size needs other limits: those of live sockets cannot be lowered safely."""
        dict_bytes = sum(tensor.nbytes for tensor in like.values())
        waiting = min(1000, max(2, _QUEUE_BYTES // dict_bytes))
        if waiting != self._waiting:
            self._disconnect()
            self._connect(waiting)

    def _connect(self, waiting: int) -> None:
        assert self._place is not None and self._context is not None
        self._waiting, self._round = waiting, self._round + 1
        self._push, self._pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        self._push.sndhwm = self._pull.rcvhwm = waiting
        for each in (self._push, self._pull):
            each.linger = 0
            each.sndtimeo = each.rcvtimeo = int(WAIT_S * 1000)
        path = self._place.folder / f"{type(self).__name__}-{self._place.name}-{self._round}"
        self._push.bind("tcp://127.0.0.1:*" if self._scheme == "tcp" else f"ipc://{path}")
        self._pull.connect(self._place.swap(self._push.last_endpoint.decode()))

    def _disconnect(self) -> None:
        if self._push is not None:
            self._push.close()
            self._pull.close()

    def send(self, tensors: Tensors) -> None:
        header = [(name, str(tensor.dtype)[6:], tensor.shape) for name, tensor in tensors.items()]
        frames = [tensor.view(-1).view(torch.uint8).numpy() for tensor in tensors.values()]
        self._push.send_multipart([msgspec.msgpack.encode(header), *frames], copy=False)

    def recv(self) -> Tensors:
        header, *frames = self._pull.recv_multipart(copy=False)
        described = msgspec.msgpack.decode(header.buffer)
        return {
            name: _view(frame, getattr(torch, dtype), shape)
            for (name, dtype, shape), frame in zip(described, frames, strict=True)
        }

    def close(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)


def _view(frame: Any, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    return torch.frombuffer(frame.buffer, dtype=dtype).view(shape)
