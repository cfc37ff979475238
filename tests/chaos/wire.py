"""TCP relays between the stages, which are cut, held and slowed down while the stages talk.

with Wires() as wires:
    port = wires.add("127.0.0.1", 15550)      # connect here instead
    wires.reset(0)
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

_PIECE = 1 << 16
_LINGER_NOT = struct.pack("ii", 1, 0)
"""What is not sent yet is thrown away, and the other side sees a reset."""


class Wire:
    """One relay. Thread: the loop's, but for `port`."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._to = host, port
        self._passes = asyncio.Event()
        self._passes.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._delay_s = 0.0
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            await self._passes.wait()
            there_reader, there_writer = await asyncio.open_connection(self._host, self._to)
        except OSError:
            self._cut(writer)
            return
        self._ends.add(there_writer)
        await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(_PIECE):
                await asyncio.sleep(self._delay_s)
                await self._passes.wait()
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        self._cut(writer)

    def _cut(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._ends:
            self._ends.remove(writer)
            writer.close()

    async def reset(self) -> None:
        for writer in list(self._ends):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()
        self._ends.clear()

    async def hold(self, seconds: float) -> None:
        self._passes.clear()
        await asyncio.sleep(seconds)
        self._passes.set()

    async def slow(self, delay_s: float, seconds: float) -> None:
        self._delay_s = delay_s
        await asyncio.sleep(seconds)
        self._delay_s = 0.0


class Wires:
    """All relays of a pipeline, on a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._wires: list[Wire] = []

    def __enter__(self) -> Wires:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def add(self, host: str, port: int) -> int:
        """A relay to HOST:PORT, which need not be there yet; the port on this machine that leads to it."""
        wire = Wire(host, port)
        self._run(wire.open()).result()
        self._wires.append(wire)
        return wire.port

    def reset(self, index: int) -> None:
        """Both sides see their connection reset, and what was on its way is lost."""
        self._run(self._wires[index].reset()).result()

    def hold(self, index: int, seconds: float) -> None:
        """Nothing passes, and nobody is told: a partition. Returns when it is over."""
        self._run(self._wires[index].hold(seconds)).result()

    def slow(self, index: int, delay_s: float, seconds: float) -> None:
        """Every piece takes `delay_s` longer. Returns when it is over."""
        self._run(self._wires[index].slow(delay_s, seconds)).result()

    def _run(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
