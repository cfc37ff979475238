"""A peer that sees other devices than this process does, or the same by other numbers."""

from __future__ import annotations

import os
from functools import partial

import torch

from tests.fault.peer import Peer
from tests.gpu.device import DEVICE
from tests.gpu.numbered import check_all, send_all
from tests.lanes import Lane
from zmqpp.transport import Link


def see(devices: str) -> None:
    """Runs in the peer, before it has used CUDA."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices


def both_ways(lane: Lane, visible: str, device: torch.device, count: int = 60) -> None:
    """A peer that sees `visible` and calls its device `device` sends to us, then a second one receives from us."""
    with Peer(partial(see, visible)) as peer:
        where = peer.open(bind=lane.address(), config=lane.config(), device=device)
        with Link(bind=None, connect=where, config=lane.config(), device=DEVICE) as link:
            peer.order("call", send_all, device, range(count))
            assert check_all(link, DEVICE, range(count)) == count
            assert link.stats()["receive_lane"] == lane.name
            peer.answer()
        peer.do("close")
    with Peer(partial(see, visible)) as peer:
        with Link(bind=lane.address(), connect=None, config=lane.config(), device=DEVICE) as link:
            peer.open(connect=link.bound, config=lane.config(), device=device)
            peer.order("call", check_all, device, range(count))
            send_all(link, DEVICE, range(count))
            assert peer.answer() == count
        peer.do("close")
