"""Which ways of moving dicts between two processes are compared, and what are they called?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from zmqpp.bench.peers.bare_socket import BareSocket
from zmqpp.bench.peers.gloo import Gloo
from zmqpp.bench.peers.mooncake_engine import Mooncake
from zmqpp.bench.peers.nixl_agent import Nixl
from zmqpp.bench.peers.pickled import Pickled
from zmqpp.bench.peers.pyzmq_frames import PyzmqFrames
from zmqpp.bench.peers.vllm_queue import VllmQueue
from zmqpp.bench.peers.zmqpp_lanes import CommunicatorLane, LinkLane
from zmqpp.bench.transport import Transport

CEILING = "memcpy"
"""Needs no second process: copying the dict into warm memory, with one thread."""


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    title: str
    make: Callable[[], Transport] | None
    is_ours: bool = False


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
    CEILING: Peer("memcpy (ceiling)", None),
}

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
    table = CHECKSUM_PEERS | CURVE_PEERS if name.startswith(LINK) else PEERS
    factory = table[name.removeprefix(LINK)].make
    if factory is None:
        raise ValueError(f"{name} is no transport between two processes")
    return factory()


LINK = "link:"
