"""One end of the ring of two, in a process of its own: sends, receives and checks at once until it is told to stop."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.soak.content import Content, control_body
from zmqpp import _engine
from zmqpp.communicator import ZeroMQCommunicator
from zmqpp.config import TransportConfig
from zmqpp.transport import Route

PATIENCE_S = 120.0
"""For every single operation; what takes longer has hung."""
_REPORT_EVERY_S = 0.5
_MAX_IN_FLIGHT = 8
_END = b"end"
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # glibc's malloc.h


@dataclass(frozen=True)
class Session:
    """What both ends must know about one opening of the link."""

    seed: int
    lane: str
    addresses: tuple[str, str]
    seconds: float
    config: TransportConfig


@dataclass
class Progress:
    """Of one session, as far as this end received and checked it."""

    dicts: int = 0
    bytes: int = 0
    rss_bytes: int = 0
    lane: str = ""
    """The one that payload took."""
    error: str = ""
    finished: bool = False


def serve(rank: int, pipe: Connection) -> None:
    """Run each Session that comes through `pipe`; a Progress goes back every moment, the last one `finished`."""
    torch.set_num_threads(1)
    _return_freed_memory()
    warnings.filterwarnings("ignore", message="ComplexHalf support is experimental")
    try:
        while True:
            session = pipe.recv()
            progress = Progress()
            try:
                Place(rank, session, progress).run(lambda p=progress: pipe.send(p))
            except Exception:
                progress.error = traceback.format_exc()
            progress.finished, progress.rss_bytes = True, _resting_bytes()
            pipe.send(progress)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # the parent is gone or wants us to be; threads may be in the middle of something


class Place:
    """One end during one session."""

    def __init__(self, rank: int, session: Session, progress: Progress) -> None:
        self._session = session
        self._progress = progress
        self._random = random.Random(f"{session.seed}/{rank}")
        self._seeds = (session.seed * 2 + rank, session.seed * 2 + 1 - rank)  # of what is sent, and received
        self._sending, self._receiving = (Content(seed, session.config) for seed in self._seeds)
        for name, value in asdict(session.config).items():
            os.environ[f"ZMQPP_{name.upper()}"] = str(value)
        self._ring = ZeroMQCommunicator(
            rank,
            bind=session.addresses[rank],
            connect=session.addresses[1 - rank],
            lane=session.lane,
            timeout_ms=PATIENCE_S * 1000,
        )
        self._link: Any = self._ring._link

    def run(self, report: Callable[[], None]) -> None:
        """Until the time is over and everything has arrived; raises nothing, the progress holds what went wrong."""
        with self._ring:
            self._ring.wait_peers()
            threads = [
                threading.Thread(target=self._guard, args=(body,), daemon=True)
                for body in (self._send, self._receive, self._receive_controls)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not self._progress.error:
                time.sleep(_REPORT_EVERY_S)
                self._progress.rss_bytes = rss_bytes(os.getpid())
                self._progress.lane = str(self._ring.stats()["lane"])
                report()

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception:
            self._progress.error = self._progress.error or traceback.format_exc()

    def _send(self) -> None:
        end = time.monotonic() + self._session.seconds
        in_flight: deque[tuple[list[Any], dict[str, Any]]] = deque()
        number = controls = 0
        while time.monotonic() < end and not self._progress.error:
            private = self._random.random() < 0.5
            values = self._sending.make(number, private)
            number += 1
            if self._random.random() < 0.3:
                self._ring.send_tensor_dict(values)
                _overwrite(values, private)
            else:
                in_flight.append((self._ring.isend_tensor_dict(values), values if private else {}))
            while len(in_flight) > self._random.randrange(_MAX_IN_FLIGHT):
                self._finish(*in_flight.popleft())
            if self._random.random() < 0.3:
                self._link.send_control(
                    control_body(self._seeds[0], controls), route=Route.LINK, tag=controls
                )
                controls += 1
        while in_flight:
            self._finish(*in_flight.popleft())
        self._ring.send_tensor_dict({"end": number})
        self._link.send_control(_END, route=Route.LINK, tag=controls)

    def _finish(self, handles: list[Any], values: dict[str, Any]) -> None:
        for handle in handles:
            handle.wait()
        _overwrite(values, True)

    def _receive(self) -> None:
        number = 0
        while not self._progress.error:
            for wait in self._posted():
                values = wait()
                if "end" in values:
                    assert values == {"end": number}, f"{values} came after {number} dicts"
                    return
                self._progress.bytes += self._receiving.check(number, values)
                self._progress.dicts += 1
                number += 1

    def _posted(self) -> list[Callable[[], dict[str, Any]]]:
        """Some receives, posted in one of the ways there are."""
        way = self._random.random()
        if way < 0.3:
            return [lambda: self._ring.recv_tensor_dict() or {}]
        if way < 0.35:
            self._link.irecv_dict().cancel()  # its dict, if it was there, goes to the next
        posted = [self._ring.irecv_tensor_dict() for _ in range(self._random.randrange(1, 7))]
        return [lambda p=p: _wait(*p) for p in posted]

    def _receive_controls(self) -> None:
        number = 0
        while not self._progress.error:
            message = self._link.recv_control(PATIENCE_S)
            assert message.tag == number, f"control message {message.tag} came where {number} was expected"
            if message.body == _END:
                return
            assert message.body == control_body(self._seeds[1], number), (
                f"control message {number} is another"
            )
            number += 1


def _wait(values: Any, handles: list[Any], post: list[Callable[[], None]]) -> dict[str, Any]:
    for handle in handles:
        handle.wait()
    for step in post:
        step()
    return dict(values)


def _overwrite(values: dict[str, Any], private: bool) -> None:
    """What the caller may do as soon as a send is done."""
    for value in values.values() if private else ():
        if isinstance(value, torch.Tensor):
            value.view(-1).view(torch.uint8).fill_(0xEE)


def rss_bytes(pid: int) -> int:
    """Memory of a process, without what it shares with others."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _return_freed_memory() -> None:
    """Have malloc give back what is freed, or what it keeps for each thread would hide a leak."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _resting_bytes() -> int:
    """Memory of this process when nothing is going on, without what is only kept for the next dict."""
    gc.collect()
    _engine.drop_cached_receive_blocks()
    ctypes.CDLL(None).malloc_trim(0)
    return rss_bytes(os.getpid())
