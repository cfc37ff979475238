"""The other place of a ring of two: sends back whatever it receives, in a thread or in a process."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import torch

from tests.lanes import Lane
from zmqpp.config import TransportConfig
from zmqpp.errors import RecvTimeout, TransportError
from zmqpp.transport import Link, Route

Device = torch.device | None


def echo(link: Link) -> None:
    """Until the link ends: dicts in one thread, control messages in another."""
    controls = threading.Thread(target=_echo_controls, args=(link,))
    controls.start()
    with suppress(TransportError):
        while True:
            link.send_dict(link.recv_dict(timeout_s=60), timeout_s=60)
    controls.join()


def _echo_controls(link: Link) -> None:
    with suppress(TransportError):
        while True:
            with suppress(RecvTimeout):
                message = link.recv_control(60)
                link.send_control(message.body, route=message.route, tag=message.tag)


@contextmanager
def ring_of_two(
    lane: Lane, where: str, config: TransportConfig, devices: tuple[Device, Device] = (None, None)
) -> Iterator[Link]:
    """This side's link; what it sends comes back to it. `devices`: of this side's tensors, and of the other's."""
    run = _in_thread if where == "threads" else _in_process
    with run(lane.address("there"), config, devices[1]) as (there, tell):
        options = {"config": config, "device": devices[0], "previous": "echo", "next": "echo"}
        with Link(bind=lane.address("here"), connect=there, **options) as here:
            tell(here.bound)
            here.wait_peers(20)
            here.send_control(b"", route=Route.LINK)
            here.recv_control(20)  # all its threads are there
            yield here


@contextmanager
def _in_thread(bind: str, config: TransportConfig, device: Device) -> Iterator[tuple]:
    # The echo must know both addresses, so it binds first and connects through a second link.
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=(bind, theirs, config, device))
    thread.start()
    try:
        yield ours.recv(), ours.send
    finally:
        thread.join()
        ours.close()
        theirs.close()


@contextmanager
def _in_process(bind: str, config: TransportConfig, device: Device) -> Iterator[tuple]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(bind, theirs, config, device))
    process.start()
    theirs.close()
    try:
        yield ours.recv(), ours.send
    finally:
        process.join(20)
        process.close()
        ours.close()


class _Halves:
    """Two links that act as one: opened one after the other, because each address is known late."""

    def __init__(self, sending: Link, receiving: Link) -> None:
        self.send_dict, self.send_control = sending.send_dict, sending.send_control
        self.recv_dict, self.recv_control = receiving.recv_dict, receiving.recv_control


def serve(bind: str, pipe: Connection, config: TransportConfig, device: Device) -> None:
    """Bind, tell where, hear whom to connect to, then echo."""
    with Link(bind=bind, connect=None, config=config, device=device) as sending:
        pipe.send(sending.bound)
        with Link(bind=None, connect=pipe.recv(), config=config, device=device) as receiving:
            echo(_Halves(sending, receiving))  # type: ignore[arg-type]
