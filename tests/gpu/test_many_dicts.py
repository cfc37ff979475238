"""Thousands of dicts between two processes while both compute: every byte is compared, on the device."""

from __future__ import annotations

import os

import pytest
import torch

from tests.fault.peer import Peer
from tests.gpu.device import DEVICE, require
from tests.gpu.numbered import Checking, Sending, check_all, send_all
from tests.lanes import Lane
from zmqpp.bench.device import use
from zmqpp.config import TransportConfig
from zmqpp.transport import Link

require()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.usefixtures("memory_and_context_survive"),
]

DICTS = int(os.environ.get("ZMQPP_GPU_DICTS", "10000"))


def test_every_byte_of_all_dicts_arrives_while_both_sides_compute(lane: Lane) -> None:
    with Peer() as peer:
        where = peer.open(bind=lane.address(), config=lane.config(), device=DEVICE)
        with Link(bind=None, connect=where, config=lane.config(), device=DEVICE) as link:
            link.wait_peers(20)
            peer.order("call", send_all, DEVICE, range(DICTS))
            assert check_all(link, DEVICE, range(DICTS)) == DICTS
            peer.answer()
            assert link.stats()["receive_lane"] == lane.name
            assert link.stats()["held_bytes"] == 0
        peer.do("close")


def test_a_stage_between_passes_them_on_as_they_come(lane: Lane) -> None:
    """One process receives and sends at the same time, without ever waiting for its device."""
    count = min(DICTS, 300)
    config = lane.config()
    with Peer() as peer:
        there = peer.open(bind=lane.address("there"), config=config, device=DEVICE)
        with (
            Link(bind=lane.address("here"), connect=None, config=config, device=DEVICE) as forth,
            Link(bind=None, connect=there, config=config, device=DEVICE) as back,
        ):
            peer.order("call", pass_on, DEVICE, forth.bound, config, count)
            sending, checking = Sending(forth, DEVICE), Checking(DEVICE)
            for number in range(count + AHEAD):
                if number < count:
                    sending.send(number)
                if number >= AHEAD:
                    checking.check(back.recv_dict(timeout_s=60), number - AHEAD)
            checking.read()
            peer.answer()
        peer.do("close")


AHEAD = 4
"""Dicts on their way around."""


def pass_on(link: Link, device: torch.device, connect: str, config: TransportConfig, count: int) -> None:
    """Runs in the peer."""
    use(device)
    with Link(bind=None, connect=connect, config=config, device=device) as before:
        for _ in range(count):
            link.isend_dict(before.recv_dict(timeout_s=60))
