"""How fast is Gloo, which vLLM's own pipeline uses between CPU stages?"""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from typing import Any

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import IN_FLIGHT, WAIT_S, Place, Unavailable


class Gloo:
    """torch.distributed with a world of two; the receiver knows the shapes, so that no metadata travels."""

    def __init__(self) -> None:
        self._received: Tensors = {}
        self._peer = 0
        self._is_open = False
        self._sends: deque[list[Any]] = deque()

    def open(self, place: Place) -> str:
        import torch.distributed as dist

        if not dist.is_gloo_available():
            raise Unavailable("this torch was built without Gloo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._peer = 0 if place.far else 1
        store = dist.FileStore(str(place.folder / "gloo"), 2)
        dist.init_process_group(
            "gloo", store=store, rank=int(place.far), world_size=2, timeout=timedelta(seconds=WAIT_S)
        )
        self._is_open = True
        return ""

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
        if self._is_open:
            self._is_open = False
            dist.destroy_process_group()

    def _wait_oldest(self) -> None:
        for work in self._sends.popleft():
            work.wait()
