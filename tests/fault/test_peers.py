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
            with pytest.raises(PeerLostError, match="no sign of life for 1"):
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


def test_dict_cut_off_by_its_deadline_fails_the_link() -> None:
    slow = replace(FAST, receive_limit_bytes=1)
    with pair(receiver=slow) as (sender, receiver):
        sender.send_dict({"fills": "the inbox"})
        with pytest.raises(SendTimeout, match="cut off by its deadline"):
            sender.isend_dict({"x": torch.ones(100 * MIB)}, timeout_s=0.5).wait_sent(5)
        assert receiver.recv_dict() == {"fills": "the inbox"}
        with pytest.raises(PeerLostError):
            receiver.recv_dict()


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
        with pytest.raises(ConnectTimeout, match="no greeting from stage 0 at tcp://127.0.0.1:1"):
            link.wait_peers(0.3)


def test_receive_deadline_passes_without_losing_the_dict() -> None:
    with pair() as (sender, receiver):
        with pytest.raises(RecvTimeout, match="no dict from a within 0.1"):
            receiver.recv_dict(timeout_s=0.1)
        with pytest.raises(RecvTimeout):
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
