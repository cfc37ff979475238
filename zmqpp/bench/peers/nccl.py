"""How fast is NCCL, which vLLM's own pipeline uses between GPU stages?"""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from typing import Any

import torch

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import IN_FLIGHT, WAIT_S, Place, Unavailable

ONE_GPU = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Set, two ranks may share a GPU, since NCCL 2.30."""


class Nccl:
    """torch.distributed with a world of two; the receiver knows the shapes, so that no metadata travels."""

    def __init__(self) -> None:
        self._received: Tensors = {}
        self._peer = 0
        self._is_open = False
        self._sends: deque[list[Any]] = deque()

    def open(self, place: Place) -> str:
        import torch.distributed as dist

        is_shared = place.swap(chip(place.device)) == chip(place.device)
        why = obstacle(place.device, nccl_version(), is_shared)
        if why:
            raise Unavailable(why)
        if is_shared:
            os.environ.setdefault(ONE_GPU, "1")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        self._peer = 0 if place.far else 1
        dist.init_process_group(
            "nccl",
            store=dist.FileStore(str(place.folder / "nccl"), 2),
            rank=int(place.far),
            world_size=2,
            timeout=timedelta(seconds=WAIT_S),
            device_id=place.device,
        )
        self._is_open = True
        return "two ranks on one GPU" if is_shared else ""

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


def obstacle(device: torch.device, version: tuple[int, ...], is_shared: bool) -> str:
    """Why NCCL cannot be measured between two processes, of which this one has `device`; "" if it can."""
    if device.type != "cuda":
        return "NCCL moves CUDA tensors alone"
    if not version:
        return "this torch was built without NCCL"
    if is_shared and version < (2, 30):
        shown = ".".join(str(number) for number in version)
        return f"two ranks on one GPU need NCCL 2.30, this is {shown}; give --far-device cuda:1 where there is one"
    return ""


def nccl_version() -> tuple[int, ...]:
    """Empty: torch has none."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_nccl_available()):
        return ()
    return tuple(torch.cuda.nccl.version())


def chip(device: torch.device) -> str:
    """What both processes call the same GPU by, however each numbers it."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else str(device)
