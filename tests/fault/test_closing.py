"""Ends that are meant: close, exit, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.links import ANY_PORT, pair
from zmqpp.config import TransportConfig
from zmqpp.errors import (
    ClosedError,
    PeerLostError,
)
from zmqpp.transport import Link, Route

MIB = 1 << 20


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
