"""How fast is NCCL, which vLLM's own pipeline uses between GPU stages?"""

from __future__ import annotations

import os

import torch

from zmqpp.bench.peers.world import World
from zmqpp.bench.transport import Place, Unavailable

ONE_GPU = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Set, two ranks may share a GPU, since NCCL 2.30."""


class Nccl(World):
    """Between CUDA tensors."""

    def open(self, place: Place) -> str:
        is_shared = place.swap(chip(place.device)) == chip(place.device)
        why = obstacle(place.device, nccl_version(), is_shared)
        if why:
            raise Unavailable(why)
        if is_shared:
            os.environ.setdefault(ONE_GPU, "1")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        self.join("nccl", place, device_id=place.device)
        return "two ranks on one GPU" if is_shared else ""


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
