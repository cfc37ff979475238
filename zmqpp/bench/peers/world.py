"""What torch.distributed's backends have in common as peers: two ranks, and a receiver that knows the shapes."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import IN_FLIGHT, WAIT_S, Place


class World:
    """torch.distributed with a world of two; the receiver knows the shapes, so that no metadata travels."""

    def __init__(self) -> None:
        self._received: Tensors = {}
        self._peer = 0
        self._is_open = False
        self._sends: deque[list[Any]] = deque()

    def join(self, backend: str, place: Place, **options: Any) -> None:
        """Meet the other rank, over a file in the place's folder."""
        import torch.distributed as dist

        self._peer = 0 if place.far else 1
        dist.init_process_group(
            backend,
            store=dist.FileStore(str(place.folder / backend), 2),
            rank=int(place.far),
            world_size=2,
            timeout=timedelta(seconds=WAIT_S),
            **options,
        )
        self._is_open = True

    def prepare(self, like: Tensors) -> None:
        if [tensor.shape for tensor in like.values()] != [tensor.shape for tensor in self._received.values()]:
            self._received = {name: tensor.clone() for name, tensor in like.items()}

    def send(self, tensors: Tensors) -> None:
        self.isend(tensors)
        self.settle()

    def isend(self, tensors: Tensors) -> None:
        import torch.distributed as dist

        while len(self._sends) >= IN_FLIGHT:
            self._wait_oldest()
        self._sends.append([dist.isend(tensor, self._peer) for tensor in tensors.values()])

    def settle(self) -> None:
        while self._sends:
            self._wait_oldest()

    def recv(self) -> Tensors:
        import torch.distributed as dist

        for work in [dist.irecv(tensor, self._peer) for tensor in self._received.values()]:
            assert work is not None
            work.wait()
        return self._received

    def close(self) -> None:
        import torch.distributed as dist

        self._sends.clear()
        self._received = {}
        if self._is_open:
            self._is_open = False
            dist.destroy_process_group()

    def _wait_oldest(self) -> None:
        for work in self._sends.popleft():
            work.wait()
