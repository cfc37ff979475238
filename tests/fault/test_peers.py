"""Peers that die, hang, come late, come twice, or are none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.links import ANY_PORT, FAST, pair
from zmqpp.config import TransportConfig
from zmqpp.errors import (
    ClosedError,
    ConnectError,
    ConnectTimeout,
    PeerLostError,
    PoolTimeout,
    RecvTimeout,
    SendTimeout,
    SequenceError,
)
from zmqpp.transport import Link, Route

MIB = 1 << 20

SENDER = """
import sys, torch
from zmqpp.transport import Link
link = Link(bind="127.0.0.1:0", connect=None, name="child")
print(link.bound, flush=True)
x = torch.ones(8 << 20)
while True:
    link.send_dict({"x": x})
"""
RECEIVER = """
import sys, time
from zmqpp.transport import Link
link = Link(bind=None, connect=sys.argv[1])
link.wait_peers(10)
print("ready", flush=True)
time.sleep(60)
"""


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    if process.stdout is None:
        raise RuntimeError("no pipe")
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_sender_killed_in_mid_transfer_fails_the_receiver() -> None:
    child = spawn(SENDER)
    try:
        with Link(
            bind=None, connect=read_line(child).removeprefix("tcp://"), config=FAST, previous="stage 0"
        ) as link:
            link.recv_dict(timeout_s=20)
            waiting = [link.irecv_dict() for _ in range(400)]
            child.kill()
            with pytest.raises(PeerLostError, match="stage 0 .* was lost"):
                for ticket in waiting:
                    ticket.wait(10)
            with pytest.raises(PeerLostError):
                link.recv_control(1)
            assert isinstance(link.previous_error(), PeerLostError)
    finally:
        end(child)


def test_receiver_killed_in_mid_transfer_fails_every_pending_send() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST, next="stage 1") as link:
        child = spawn(RECEIVER, str(link.bound))
        try:
            assert read_line(child) == "ready"
            tickets = [link.isend_dict({"x": torch.ones(40 * MIB)}) for _ in range(3)]
            time.sleep(0.2)
            child.kill()
            with pytest.raises(PeerLostError, match="stage 1"):
                for ticket in tickets:
                    ticket.wait_sent(10)
            with pytest.raises(PeerLostError):
                link.send_control(b"", route=Route.LINK)
            assert isinstance(link.next_error(), PeerLostError)
            assert tickets[-1].is_completed()
        finally:
            end(child)


def test_stopped_sender_is_given_up_after_the_peer_timeout() -> None:
    child = spawn(SENDER.replace("while True:\n    link.send_dict({'x': x})", "import time; time.sleep(60)"))
    try:
        quick = replace(FAST, heartbeat_s=0.1, peer_timeout_s=1.0)
        with Link(bind=None, connect=read_line(child), config=quick, previous="stage 0") as link:
            link.wait_peers(10)
            os.kill(child.pid, signal.SIGSTOP)
            with pytest.raises(PeerLostError, match="no sign of life for 1 s"):
                while True:
                    link.recv_dict(timeout_s=10)
    finally:
        end(child)


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


def test_receiver_may_start_first() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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


def test_dict_cut_off_by_its_deadline_is_cancelled_and_the_link_goes_on() -> None:
    slow = replace(FAST, receive_limit_bytes=1)
    with pair(receiver=slow) as (sender, receiver):
        sender.send_dict({"fills": "the inbox"})
        before = sender.isend_dict({"before": 1})
        cut_off = sender.isend_dict({"x": torch.ones(100 * MIB)}, timeout_s=0.5)
        with pytest.raises(SendTimeout, match=r"b \(receiver on .* of 419430400 bytes .* was cancelled"):
            cut_off.wait_sent(5)
        later = sender.isend_dict({"x": torch.full((MIB,), 7.0)})
        assert receiver.recv_dict() == {"fills": "the inbox"}
        assert receiver.recv_dict() == {"before": 1}
        assert bool((receiver.recv_dict()["x"] == 7).all())
        before.wait_sent()
        later.wait_sent()
        assert sender.stats()["cancelled"] == receiver.stats()["cancelled"] == 1
        assert sender.next_error() is None and receiver.previous_error() is None


def test_exactly_the_dicts_that_were_not_cut_off_arrive() -> None:
    narrow = replace(FAST, chunk_bytes=64 << 10, pool_chunks=4, receive_limit_bytes=MIB)
    with pair(sender=narrow, receiver=narrow) as (sender, receiver):
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
            tickets.append(sender.isend_dict(values, timeout_s=0.002 * (i % 12)))
            sender.send_control(b"between", route=Route.LINK)
            if i % 5 == 0:
                time.sleep(0.02)
        sender.send_dict({"i": -1})
        thread.join(20)
        arrived = [i for i, ticket in enumerate(tickets) if ticket.is_sent()]
        assert got == arrived and sender.stats()["cancelled"] > 0 and len(got) > 0
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


def test_tag_mismatch_is_a_sequence_error() -> None:
    with pair() as (sender, receiver):
        sender.send_dict({}, tag=4)
        with pytest.raises(SequenceError, match="tag 4 .*expected 5"):
            receiver.recv_dict(tag=5)


def test_clean_close_delivers_everything_then_says_so() -> None:
    with pair() as (sender, receiver):
        for i in range(20):
            sender.isend_dict({"i": i, "x": torch.ones(MIB // 4)})
        sender.close()
        assert [receiver.recv_dict()["i"] for _ in range(20)] == list(range(20))
        with pytest.raises(PeerLostError, match="a .* closed the link"):
            receiver.recv_dict()


def test_close_wakes_every_waiter() -> None:
    with pair() as (_, receiver):
        errors: list[Exception] = []

        def wait(call) -> None:
            try:
                call()
            except Exception as error:
                errors.append(error)

        calls = [lambda: receiver.recv_control(30), lambda: receiver.recv_dict(timeout_s=30)]
        threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        receiver.close()
        for thread in threads:
            thread.join(5)
        assert [type(error) for error in errors] == [ClosedError, ClosedError]
        receiver.close()


def test_close_without_peer_does_not_linger() -> None:
    link = Link(bind=ANY_PORT, connect=None, config=TransportConfig(linger_s=30.0))
    ticket = link.isend_dict({"x": torch.ones(MIB)})
    started = time.monotonic()
    link.close()
    assert time.monotonic() - started < 2
    with pytest.raises(ClosedError):
        ticket.wait()
    with pytest.raises(ClosedError):
        link.send_dict({})


def test_probes_and_strangers_do_not_disturb() -> None:
    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        where = ("127.0.0.1", int(str(sender.bound).rpartition(":")[2]))
        silent = socket.create_connection(where)
        disturb(where)
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            sender.wait_peers(5)
            receiver.wait_peers(5)
            silent.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
            silent.close()
            for i in range(20):
                disturb(where)
                sender.send_dict({"i": i})
                assert receiver.recv_dict() == {"i": i}
            assert sender.next_error() is None


def disturb(where: tuple[str, int]) -> None:
    socket.create_connection(where).close()
    for bytes_sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" + bytes(8) + b"\x7f", os.urandom(100)):
        with socket.create_connection(where) as stranger:
            stranger.sendall(bytes_sent)
            stranger.settimeout(0.05)
            try:
                stranger.recv(64)
            except OSError:
                pass


def test_port_in_use_names_the_owner_and_the_remedy() -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(ConnectError, match=rf"{port}.*pid {os.getpid()} .*each stage its own port"):
            Link(bind=f"127.0.0.1:{port}", connect=None)


def test_socket_file_of_another_process_is_taken_only_when_it_died(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/link"
    child = spawn(SENDER.replace('"127.0.0.1:0"', repr(where)))
    try:
        assert read_line(child) == where
        with pytest.raises(ConnectError, match=f"in use.*pid {child.pid} "):
            Link(bind=where, connect=None)
    finally:
        end(child)
    assert (tmp_path / "link").exists()
    with pair(bind=where) as (sender, receiver):
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}


def test_foreign_address_is_not_bound() -> None:
    with pytest.raises(ConnectError, match="not an address of this machine"):
        Link(bind="192.0.2.1:0", connect=None)


def test_receiver_outlasts_a_stranger_on_the_senders_port() -> None:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen()
    port = server.getsockname()[1]
    with Link(bind=None, connect=f"127.0.0.1:{port}", config=FAST) as receiver:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(ConnectTimeout, match="does not speak ZeroMQ"):
                receiver.wait_peers(0.3)
        with Link(bind=port, connect=None, config=FAST) as sender:
            sender.wait_peers(5)
            receiver.wait_peers(5)


def test_second_receiver_fails_the_link_loudly() -> None:
    with pair() as (sender, _), Link(bind=None, connect=sender.bound, config=FAST):
        with pytest.raises(ConnectError, match="a second receiver"):
            for _ in range(50):
                sender.send_control(b"x", route=Route.LINK)
                time.sleep(0.05)


def test_forked_child_leaves_the_link_alone() -> None:
    with pair() as (sender, receiver):
        child = os.fork()
        if child == 0:
            try:
                sender.close()
                sender.send_control(b"x", route=Route.LINK)
                os._exit(1)
            except ClosedError:
                del sender
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        sender.send_control(b"fine", route=Route.LINK)
        assert receiver.recv_control(5).body == b"fine"


def test_open_link_does_not_keep_a_process_from_ending() -> None:
    code = """
import threading
from zmqpp.transport import Link
link = Link(bind="127.0.0.1:0", connect="127.0.0.1:1")
threading.Thread(target=lambda: link.recv_control(60), daemon=True).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_is_heard_while_waiting() -> None:
    with pair() as (_, receiver):
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            receiver.recv_control(20)
        assert time.monotonic() - started < 5
        timer.join()
