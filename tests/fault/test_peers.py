"""Peers that come late, come twice, are slow, or stand where another one stood."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fault.peer import Peer
from tests.links import ANY_PORT, FAST, pair
from zmqpp.errors import (
    ConnectError,
    SequenceError,
)
from zmqpp.pipeline.ports import free_port
from zmqpp.transport import Link, Route

MIB = 1 << 20


def test_receiver_may_start_first() -> None:
    port = free_port()
    with Link(bind=None, connect=f"127.0.0.1:{port}", config=FAST) as receiver:
        time.sleep(0.3)
        with Link(bind=port, connect=None, config=FAST) as sender:
            sender.send_control(b"late", route=Route.LINK)
            assert receiver.recv_control(5).body == b"late"


def test_sender_may_start_first_and_queue() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        sender.send_control(b"early", route=Route.LINK)
        ticket = sender.isend_dict({"x": torch.ones(MIB)})
        time.sleep(0.2)
        assert not ticket.is_completed()
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            assert receiver.recv_control(5).body == b"early"
            assert receiver.recv_dict()["x"].sum() == MIB


def test_idle_link_outlives_the_peer_timeout() -> None:
    quick = replace(FAST, heartbeat_s=0.1, peer_timeout_s=0.5)
    with pair(sender=quick, receiver=quick) as (sender, receiver):
        time.sleep(1.5)
        sender.send_control(b"still here", route=Route.LINK)
        assert receiver.recv_control(5).body == b"still here"


def test_back_pressure_longer_than_the_peer_timeout_loses_nobody() -> None:
    quick = replace(FAST, heartbeat_s=0.1, peer_timeout_s=0.5, receive_limit_bytes=MIB)
    with pair(sender=quick, receiver=quick) as (sender, receiver):
        tickets = [
            sender.isend_dict({"i": i, "x": torch.full((8 * MIB,), i, dtype=torch.uint8)}) for i in range(12)
        ]
        time.sleep(2.0)
        assert receiver.stats()["dicts_received"] < 6
        for i in range(12):
            got = receiver.recv_dict()
            assert got["i"] == i and bool((got["x"] == i).all())
        tickets[-1].wait_sent()


def test_tag_mismatch_is_a_sequence_error() -> None:
    with pair() as (sender, receiver):
        sender.send_dict({}, tag=4)
        with pytest.raises(SequenceError, match="tag 4 .*expected 5"):
            receiver.recv_dict(tag=5)


def test_port_in_use_names_the_owner_and_the_remedy() -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(ConnectError, match=rf"{port}.*pid {os.getpid()} .*each stage its own port"):
            Link(bind=f"127.0.0.1:{port}", connect=None)


def test_socket_file_of_another_process_is_taken_only_when_it_died(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/link"
    with Peer() as peer:
        assert peer.open(bind=where, config=FAST) == where
        with pytest.raises(ConnectError, match=f"in use.*pid {peer.pid} "):
            Link(bind=where, connect=None)
    assert (tmp_path / "link").exists()
    with pair(bind=where) as (sender, receiver):
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}


def test_foreign_address_is_not_bound() -> None:
    with pytest.raises(ConnectError, match="not an address of this machine"):
        Link(bind="192.0.2.1:0", connect=None)
