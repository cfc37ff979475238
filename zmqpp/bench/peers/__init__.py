"""Which ways of moving dicts between two processes are compared, and what are they called?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zmqpp.bench.peers.bare_socket import BareSocket
from zmqpp.bench.peers.device_copies import Pair, copy_across, copy_in, copy_out
from zmqpp.bench.peers.gloo import Gloo
from zmqpp.bench.peers.memcpy import copy_stream
from zmqpp.bench.peers.mooncake_engine import Mooncake
from zmqpp.bench.peers.nccl import Nccl
from zmqpp.bench.peers.nixl_agent import Nixl
from zmqpp.bench.peers.pickled import Pickled
from zmqpp.bench.peers.pyzmq_frames import PyzmqFrames
from zmqpp.bench.peers.vllm_queue import VllmQueue
from zmqpp.bench.peers.zmqpp_lanes import CommunicatorLane, LinkLane
from zmqpp.bench.transport import Transport
from zmqpp.bench.turn import Stream

CEILING = "memcpy"
"""Copying the dict into warm memory, with one thread."""
COPY_OUT, COPY_IN, COPY_ACROSS = "d2h", "h2d", "d2d"
"""What a GPU's copy engines can do."""

Limit = Callable[[Pair, int, torch.device], Stream]


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    title: str
    make: Callable[[], Transport] | None = None
    is_ours: bool = False
    limit: Limit | None = None
    """In place of `make`: needs no second process. Takes two payloads, how often, and the far side's device."""


PEERS: dict[str, Peer] = {
    "zmqpp-shm": Peer("zmqpp, shm lane", lambda: CommunicatorLane("shm", "tcp"), is_ours=True),
    "zmqpp-ipc": Peer("zmqpp, socket over ipc://", lambda: CommunicatorLane("tcp", "ipc"), is_ours=True),
    "zmqpp-tcp": Peer("zmqpp, tcp lane", lambda: CommunicatorLane("tcp", "tcp"), is_ours=True),
    "vllm": Peer("vLLM MessageQueue", lambda: VllmQueue(arena=False)),
    "vllm-arena": Peer("vLLM MessageQueue + arena", lambda: VllmQueue(arena=True)),
    "socket": Peer("bare TCP socket", BareSocket),
    "pyzmq-tcp": Peer("pyzmq zero-copy, tcp", lambda: PyzmqFrames("tcp")),
    "pyzmq-ipc": Peer("pyzmq zero-copy, ipc://", lambda: PyzmqFrames("ipc")),
    "gloo": Peer("Gloo (torch.distributed)", Gloo),
    "nixl": Peer("NIXL (UCX)", Nixl),
    "mooncake": Peer("Mooncake (tcp)", Mooncake),
    "pickle": Peer("pickle + torch.save", Pickled),
    CEILING: Peer("memcpy (ceiling)", limit=copy_stream),
}

CUDA_PEERS: dict[str, Peer] = {
    "zmqpp-cuda_ipc": Peer("zmqpp, cuda_ipc lane", lambda: CommunicatorLane("cuda_ipc", "tcp"), is_ours=True),
    "zmqpp-shm": PEERS["zmqpp-shm"],
    "zmqpp-tcp": PEERS["zmqpp-tcp"],
    "nccl": Peer("NCCL (torch.distributed)", Nccl),
    "pickle": Peer(".cpu() + pickle", Pickled),
    COPY_OUT: Peer("pinned device to host (limit)", limit=copy_out),
    COPY_IN: Peer("pinned host to device (limit)", limit=copy_in),
    COPY_ACROSS: Peer("device to device (limit)", limit=copy_across),
}
"""Those that make sense for tensors of a GPU."""


def limit_of(name: str) -> Limit | None:
    """What is measured of `name` where it is no transport between two processes."""
    return known.limit if (known := (CUDA_PEERS | PEERS).get(name)) else None


def peers_for(device: torch.device) -> dict[str, Peer]:
    return CUDA_PEERS if device.type == "cuda" else PEERS


CHECKSUM_PEERS: dict[str, Peer] = {
    f"zmqpp-{lane}{'-crc' if checksum else ''}": Peer(
        f"zmqpp, {lane} lane{', checksum' if checksum else ''}",
        lambda lane=lane, checksum=checksum: LinkLane(lane=lane, checksum=checksum),  # type: ignore[misc]
        is_ours=True,
    )
    for lane in ("shm", "tcp")
    for checksum in (False, True)
}

KEYS_VARIABLE = "ZMQPP_BENCH_KEYS"
"""Where both processes of a run find the keys that were made for it."""
CURVE_PEERS: dict[str, Peer] = {
    f"zmqpp-{lane}{'-curve' if curve else ''}": Peer(
        f"zmqpp, {lane} lane{', keys' if curve else ''}",
        lambda lane=lane, curve=curve: LinkLane(  # type: ignore[misc]
            lane=lane, curve_dir=os.environ[KEYS_VARIABLE] if curve else ""
        ),
        is_ours=True,
    )
    for lane in ("tcp", "shm")
    for curve in (False, True)
}


def make(name: str) -> Transport:
    """One side of it, not open yet; names of `CHECKSUM_PEERS` and `CURVE_PEERS` have the prefix "link:"."""
    table = CHECKSUM_PEERS | CURVE_PEERS if name.startswith(LINK) else CUDA_PEERS | PEERS
    factory = table[name.removeprefix(LINK)].make
    if factory is None:
        raise ValueError(f"{name} is no transport between two processes")
    return factory()


LINK = "link:"
