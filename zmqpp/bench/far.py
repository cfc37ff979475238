"""What does the second process of a benchmark do? It sends back or takes in what comes, when it is told to."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from zmqpp.bench.channel import Channel, PeerFailed
from zmqpp.bench.device import bytes_in_use, let_go, use
from zmqpp.bench.payload import Payload, Size, rehearse
from zmqpp.bench.peers import make
from zmqpp.bench.transport import WAIT_S, Place, Transport
from zmqpp.bench.turn import far_stream, far_trips

DO, DONE, SWAP = "do", "done", "swap"


def serve(pipe: Connection, folder: Path, device: torch.device) -> None:
    """Until the near process ends or says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the near process, whose end we notice
    torch.set_num_threads(1)
    far = Far(Channel(pipe, "near"), folder, device)
    try:
        while far.step():
            pass
    except PeerFailed:
        pass
    finally:
        far.close_all()


class Far:
    """The far side of every transport, one operation after the other."""

    def __init__(self, channel: Channel, folder: Path, device: torch.device) -> None:
        self._channel = channel
        self._place = Place(True, folder, lambda value: swap(channel, value), device)
        self._transports: dict[str, Transport] = {}
        self._payload: Payload | None = None

    def step(self) -> bool:
        """One operation, with its result or its error for the near side; False: that was the last."""
        kind, value = self._channel.recv(None)
        if kind != DO:  # left over from an operation that was given up
            return True
        verb, arguments = value
        try:
            result = getattr(self, f"do_{verb}")(*arguments)
        except Exception as error:
            self._channel.fail(error)
            return True
        self._channel.send(DONE, result)
        return bool(verb != "end")

    def do_open(self, name: str) -> None:
        use(self._place.device)
        self._transports[name] = make(name)
        self._transports[name].open(self._place)

    def do_trips(self, name: str, size: Size, count: int) -> None:
        far_trips(self._transports[name], size, count, self._place.device)

    def do_stream(self, name: str, size: Size, count: int, reads: bool) -> None:
        far_stream(self._transports[name], self._wanted(size), count, self._channel, reads)

    def do_ready(self, size: Size) -> None:
        use(self._place.device)
        rehearse(self._wanted(size))

    def do_device_bytes(self) -> int:
        let_go(self._place.device)
        return bytes_in_use(self._place.device)

    def do_close(self, name: str) -> None:
        transport = self._transports.pop(name, None)
        if transport is not None:
            transport.close()

    def do_sync(self, token: int) -> int:
        return token

    def do_end(self) -> None:
        self.close_all()

    def close_all(self) -> None:
        for name in list(self._transports):
            try:
                self.do_close(name)
            except Exception:  # the others still must be closed
                pass

    def _wanted(self, size: Size) -> Payload:
        if self._payload is None or self._payload.size != size:
            self._payload = None  # its memory first
            self._payload = Payload(size, self._place.device)
        return self._payload


def swap(channel: Channel, value: Any) -> Any:
    """Give `value`, get the other side's."""
    channel.send(SWAP, value)
    return channel.expect(SWAP, OPEN_S)


OPEN_S = WAIT_S * 6
"""Opening may import a large library on a busy machine."""
