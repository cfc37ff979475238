"""Deadlines: what is raised, what it says, and that the link goes on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch

from tests.lanes import Lane
from tests.links import ANY_PORT, FAST, pair
from zmqpp.errors import (
    ConnectTimeout,
    PoolTimeout,
    RecvTimeout,
    SendTimeout,
)
from zmqpp.transport import Link, Route

MIB = 1 << 20
ON_A_SOCKET = r"b \(receiver on .* of 419430400 bytes .* was cancelled"
CUT_OFF = {
    "tcp": ON_A_SOCKET,
    "ipc": ON_A_SOCKET,
    "shm": r"the shared segment of \d+ bytes holds \d+ .* that b has not received",
}
"""What the sender says of a dict that it could send a part of."""


def test_large_send_without_peer_ends_at_its_deadline_and_leaves_the_link_usable() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST, next="stage 1") as sender:
        with pytest.raises(ConnectTimeout, match="no receiver connected .* is stage 1 running"):
            sender.send_dict({"x": torch.ones(MIB)}, timeout_s=0.2)
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            sender.send_dict({"later": 1})
            assert receiver.recv_dict() == {"later": 1}


def test_control_message_without_peer_fails_the_sending_half_at_its_deadline() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        sender.send_control(b"x", route=Route.LINK, timeout_s=0.1)
        time.sleep(0.4)
        assert isinstance(sender.next_error(), ConnectTimeout)


def test_copied_dict_outlives_its_deadline_without_a_peer() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        ticket = sender.isend_dict({"x": torch.ones(4)}, timeout_s=0.1)
        assert ticket.is_completed()
        with pytest.raises(
            SendTimeout, match=r"not handed to ZeroMQ within 0\.4 s; the receiver is not there"
        ):
            ticket.wait_sent(0.4)
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            assert receiver.recv_dict()["x"].sum() == 4
            ticket.wait_sent(5)


def test_copied_dicts_without_a_taker_fill_the_queue_and_no_more() -> None:
    small = replace(FAST, queue_bytes=64 << 10)
    with Link(bind=ANY_PORT, connect=None, config=small, next="stage 1") as sender:
        sent = 0
        with pytest.raises(PoolTimeout, match=r"full for 0\.2 s: .*; stage 1 has not connected to tcp://"):
            while True:
                sender.send_dict({"i": sent, "x": bytes(6000)}, timeout_s=0.2)
                sent += 1
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            assert [receiver.recv_dict()["i"] for _ in range(sent)] == list(range(sent))
            with pytest.raises(RecvTimeout):
                receiver.recv_dict(timeout_s=0.1)


def test_dict_cut_off_by_its_deadline_is_cancelled_and_the_link_goes_on(lane: Lane) -> None:
    slow = lane.config(receive_limit_bytes=1, shm_bytes=64 * MIB)
    with pair(bind=lane.address(), sender=slow, receiver=slow) as (sender, receiver):
        sender.send_dict({"fills": "the inbox"})
        before = sender.isend_dict({"before": 1})
        cut_off = sender.isend_dict({"x": torch.ones(100 * MIB)}, timeout_s=0.5)
        with pytest.raises(SendTimeout, match=f"{CUT_OFF[lane.name]}.*the link goes on"):
            cut_off.wait_sent(5)
        later = sender.isend_dict({"x": torch.full((MIB,), 7.0)})
        assert receiver.recv_dict() == {"fills": "the inbox"}
        assert receiver.recv_dict() == {"before": 1}
        assert bool((receiver.recv_dict()["x"] == 7).all())
        before.wait_sent()
        later.wait_sent()
        assert receiver.stats()["cancelled"] == 1
        assert sender.next_error() is None and receiver.previous_error() is None


def test_control_messages_in_front_of_a_dict_do_not_keep_it_from_who_waits_for_it(lane: Lane) -> None:
    """A stage computes one step while those after it come: it takes none of them before it has its dict."""
    full = lane.config(receive_limit_bytes=1)
    with pair(bind=lane.address(), sender=full, receiver=full) as (sender, receiver):
        for tag in range(5):
            sender.send_control(bytes(1000), route=Route.LINK, tag=tag)
        sender.send_dict({"awaited": 1})
        assert receiver.recv_dict(timeout_s=5) == {"awaited": 1}
        assert [receiver.recv_control(5).tag for _ in range(5)] == list(range(5))


def test_exactly_the_dicts_that_were_not_cut_off_arrive(lane: Lane) -> None:
    narrow = lane.config(chunk_bytes=64 << 10, pool_chunks=4, receive_limit_bytes=MIB, shm_bytes=MIB)
    with pair(bind=lane.address(), sender=narrow, receiver=narrow) as (sender, receiver):
        got: list[int] = []

        def receive() -> None:
            while (values := receiver.recv_dict())["i"] >= 0:
                if not bool((values["x"] == values["i"]).all()):
                    raise ValueError("other bytes")
                got.append(values["i"])

        thread = threading.Thread(target=receive)
        thread.start()
        tickets = []
        for i in range(60):
            values = {"i": i, "x": torch.full((8 * MIB,), i, dtype=torch.uint8)}
            seconds = 5 if i % 15 == 14 else 0.002 * (i % 12)
            tickets.append(sender.isend_dict(values, timeout_s=seconds))
            sender.send_control(b"between", route=Route.LINK)
            if i % 5 == 0:
                time.sleep(0.02)
        sender.send_dict({"i": -1})
        thread.join(20)
        arrived = [i for i, ticket in enumerate(tickets) if ticket.is_sent()]
        assert got == arrived and 0 < len(got) < len(tickets)
        assert receiver.stats()["cancelled"] > 0
        assert all(receiver.recv_control(5).body == b"between" for _ in tickets)


def test_full_queue_makes_the_caller_wait_and_tells_what_is_held() -> None:
    small = replace(FAST, queue_items=4)
    with Link(bind=ANY_PORT, connect=None, config=small) as sender:
        for _ in range(4):
            sender.send_control(bytes(1000), route=Route.LINK)
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match="holds 4 messages, 4000 of"):
            sender.send_control(b"x", route=Route.LINK, timeout_s=0.3)
        assert 0.25 < time.monotonic() - started < 2


def test_wait_peers_names_who_is_missing() -> None:
    with Link(bind=ANY_PORT, connect=None, next="stage 1") as link:
        with pytest.raises(ConnectTimeout, match="stage 1 did not connect"):
            link.wait_peers(0.1)
    with Link(bind=None, connect="127.0.0.1:1", previous="stage 0") as link:
        with pytest.raises(
            ConnectTimeout, match=r"no greeting from stage 0 at tcp://127.0.0.1:1 within 0\.3 s"
        ):
            link.wait_peers(0.3)


def test_receive_deadline_says_why_nothing_can_come() -> None:
    nobody = r"from stage 0 within 0\.3 s \(not connected to tcp://127.0.0.1:1 yet: nobody answers there\)"
    with Link(bind=None, connect="127.0.0.1:1", config=FAST, previous="stage 0") as link:
        with pytest.raises(RecvTimeout, match=f"no dict {nobody}"):
            link.recv_dict(timeout_s=0.3)
        with pytest.raises(RecvTimeout, match=f"no control message {nobody}"):
            link.recv_control(0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with Link(bind=None, connect=f"127.0.0.1:{server.getsockname()[1]}", config=FAST) as link:
            connection, _ = server.accept()
            with (
                connection,
                pytest.raises(RecvTimeout, match=r"within 0\.3 s .*does not speak ZeroMQ's protocol"),
            ):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                link.recv_dict(timeout_s=0.3)


def test_receive_deadline_passes_without_losing_the_dict() -> None:
    with pair() as (sender, receiver):
        with pytest.raises(RecvTimeout, match=r"no dict from a within 0\.1 s$"):
            receiver.recv_dict(timeout_s=0.1)
        with pytest.raises(RecvTimeout, match=r"from a within 0 s$"):
            receiver.recv_control(0)
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}


def test_ctrl_c_is_heard_while_waiting() -> None:
    with pair() as (_, receiver):
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            receiver.recv_control(20)
        assert time.monotonic() - started < 5
        timer.join()
