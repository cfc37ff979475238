"""How are both processes made to do the same thing at the same time, whatever fails on either side?"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from zmqpp.bench.channel import Channel, PeerFailed
from zmqpp.bench.compute import Compute
from zmqpp.bench.device import CPU, bytes_in_use, let_go, use
from zmqpp.bench.far import DO, DONE, OPEN_S, serve, swap
from zmqpp.bench.overlapped import Together, near_together
from zmqpp.bench.payload import Payload, Size, rehearse
from zmqpp.bench.peers import make
from zmqpp.bench.transport import WAIT_S, Place, Transport
from zmqpp.bench.turn import Stream, Trips, near_stream, near_trips

_T = TypeVar("_T")
_TURN_S = 4 * WAIT_S
"""A turn has at most this many waits, one after the other, before its far side gives up."""


class Near:
    """This process's side of every transport, and the owner of the far process.

    `open`, `trips`, `stream` and `close` act on both sides. They raise what either side failed with; the other
    transports then still work. PeerFailed from `sync` means that the far process is gone.

    Args:
        device: of this process's tensors.
        far_device: of the far process's; may be the same.
    """

    def __init__(self, device: torch.device = CPU, far_device: torch.device = CPU) -> None:
        self.device, self.far_device = device, far_device
        use(device)
        self._folder = tempfile.TemporaryDirectory(prefix="zmqpp-bench-")
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        self._pipe = pipe
        place = Path(self._folder.name)
        self._process = context.Process(target=serve, args=(theirs, place, far_device), daemon=True)
        self._process.start()
        theirs.close()
        self._channel = Channel(pipe, "far")
        self._place = Place(False, place, lambda value: swap(self._channel, value), device)
        self._transports: dict[str, Transport] = {}
        self._payloads: tuple[Payload, Payload] | None = None
        self._token = 0

    def open(self, name: str) -> str:
        """What the transport remarks about itself."""
        transport = self._transports[name] = make(name)
        return self._both("open", (name,), lambda: transport.open(self._place), OPEN_S)

    def trips(self, name: str, size: Size, count: int) -> Trips:
        transport, payload = self._transports[name], self.payloads(size)[0]
        return self._both(
            "trips", (name, size, count), lambda: near_trips(transport, payload, count), _TURN_S
        )

    def stream(self, name: str, size: Size, count: int, reads: bool = True) -> Stream:
        """`reads`: whether the far side looks at what comes."""
        transport, pair = self._transports[name], self.payloads(size)
        own = lambda: near_stream(transport, pair, count, self._channel)  # noqa: E731
        return self._both("stream", (name, size, count, reads), own, _TURN_S)

    def together(self, name: str, size: Size, shape: tuple[int, int], compute: Compute) -> Together:
        """`shape`: steps, and products in each."""
        transport, pair = self._transports[name], self.payloads(size)
        own = lambda: near_together(transport, compute, pair, shape, self._channel)  # noqa: E731
        return self._both("stream", (name, size, shape[0], False), own, _TURN_S)

    def with_echo(self, name: str, size: Size, count: int, own: Callable[[Transport], _T]) -> _T:
        """`own` makes as many round trips as `trips` would, in its own way."""
        transport = self._transports[name]
        return self._both("trips", (name, size, count), lambda: own(transport), _TURN_S)

    def close(self, name: str) -> None:
        transport = self._transports.pop(name, None)
        if transport is not None:
            self._both("close", (name,), transport.close, OPEN_S)

    def payloads(self, size: Size) -> tuple[Payload, Payload]:
        """Two dicts of this size; only the last size's are kept."""
        if self._payloads is None or self._payloads[0].size != size:
            self._payloads = None  # their memory first
            self._payloads = (Payload(size, self.device), Payload(size, self.device))
        return self._payloads

    def ready(self, size: Size) -> None:
        """Both sides have their payloads, and have once used all that measuring needs of the device."""
        pair = self.payloads(size)
        self._both("ready", (size,), lambda: rehearse(pair[0]), OPEN_S)

    def device_bytes(self) -> int:
        """Of the devices' memory, in use by whatever process; caches are emptied before. 0 on the CPU."""
        let_go(self.device)
        self._channel.send(DO, ("device_bytes", ()))
        there = int(self._channel.expect(DONE, _TURN_S))
        return there if self.device == self.far_device else there + bytes_in_use(self.device)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """Close everything on both sides; the far process is gone afterwards."""
        try:
            for name in list(self._transports):
                try:
                    self.close(name)
                except Exception:  # the others still must be closed
                    pass
            self._both("end", (), lambda: None, OPEN_S)
        except PeerFailed:
            pass
        finally:
            self._end_process()

    def _end_process(self) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._folder.cleanup()

    def _both(self, verb: str, arguments: tuple[Any, ...], own: Callable[[], _T], limit_s: float) -> _T:
        self._channel.send(DO, (verb, arguments))
        try:
            result = own()
            self._channel.expect(DONE, limit_s)
        except Exception as error:
            self._channel.fail(error)
            self._sync()
            raise
        return result

    def _sync(self) -> None:
        """Skip what the far side still says about an operation that failed."""
        self._token += 1
        self._channel.send(DO, ("sync", (self._token,)))
        while self._channel.recv(OPEN_S + _TURN_S) != (DONE, self._token):
            pass

    def __enter__(self) -> Near:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._process.kill()  # it may wait for us in the middle of a transfer
        self.end()
