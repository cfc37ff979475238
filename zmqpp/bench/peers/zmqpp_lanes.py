"""How fast is zmqpp itself, on each of its lanes?"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from zmqpp import Link, TransportConfig, ZeroMQCommunicator
from zmqpp.bench.device import CPU
from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import IN_FLIGHT, WAIT_S, Place, Unavailable
from zmqpp.errors import UnsupportedError


class CommunicatorLane:
    """The public communicator, as two ranks of a ring.

    Args:
        lane: what the communicator is told.
        scheme: tcp on the loopback address, or ipc: a socket in the run's folder.
    """

    def __init__(self, lane: str, scheme: str) -> None:
        self._lane, self._scheme = lane, scheme
        self._ring: ZeroMQCommunicator | None = None
        self._sends: deque[Any] = deque()

    def open(self, place: Place) -> str:
        bind = address(self._scheme, place, self._lane)
        connect = place.swap(bind)
        try:
            self._ring = ZeroMQCommunicator(
                *(int(place.far), 2),
                bind=bind,
                connect=connect,
                lane=self._lane,
                device=None if place.device == CPU else place.device,
                timeout_ms=WAIT_S * 1000,
            )
        except UnsupportedError as error:
            raise Unavailable(str(error)) from None
        self._ring.wait_peers()
        return f"lane {self._ring.stats().get('lane', '?')}"

    def prepare(self, like: Tensors) -> None:
        pass

    def send(self, tensors: Tensors) -> None:
        self._opened.send_tensor_dict(tensors)

    def isend(self, tensors: Tensors) -> None:
        while len(self._sends) >= IN_FLIGHT:
            self._sends.popleft().wait()
        self._sends.append(self._opened.isend_tensor_dict(tensors)[-1])

    def settle(self) -> None:
        while self._sends:
            self._sends.popleft().wait()

    def recv(self) -> Tensors:
        got = self._opened.recv_tensor_dict()
        assert got is not None  # only a ring of one has none
        return got

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()

    @property
    def _opened(self) -> ZeroMQCommunicator:
        assert self._ring is not None
        return self._ring


class LinkLane:
    """A link, for settings that the communicator does not pass on."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._sends: deque[Any] = deque()

    def open(self, place: Place) -> str:
        bind = address("tcp", place, "link")
        connect = place.swap(bind)
        try:
            config = TransportConfig(timeout_s=WAIT_S, **self._settings)
        except TypeError as error:
            raise Unavailable(f"this zmqpp lacks a setting: {error}") from None
        self._link = Link(bind=bind, connect=connect, config=config)
        self._link.wait_peers()
        return f"lane {self._link.stats().get('lane', '?')}"

    def prepare(self, like: Tensors) -> None:
        pass

    def send(self, tensors: Tensors) -> None:
        self._opened.send_dict(tensors)

    def isend(self, tensors: Tensors) -> None:
        while len(self._sends) >= IN_FLIGHT:
            self._sends.popleft().wait()
        self._sends.append(self._opened.isend_dict(tensors))

    def settle(self) -> None:
        while self._sends:
            self._sends.popleft().wait()

    def recv(self) -> Tensors:
        return self._opened.recv_dict()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    @property
    def _opened(self) -> Link:
        assert self._link is not None
        return self._link


def address(scheme: str, place: Place, name: str) -> str:
    """Where this side binds; a port that was free a moment ago, because both addresses must be known beforehand."""
    if scheme == "ipc":
        return f"ipc://{place.folder}/zmqpp-{name}-{place.name}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
