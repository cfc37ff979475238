"""How long does a dict take there and back, and how many bytes a second go one way? Both halves of each measurement."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from zmqpp.bench.channel import Channel
from zmqpp.bench.device import CPU, settle
from zmqpp.bench.payload import Payload, Size, check_same, fresh_nonce, touch
from zmqpp.bench.transport import WAIT_S, Transport

CHECKS = 4
"""Round trips of one measurement whose contents are fresh and compared, spread over it."""

_SMALL_BYTES = 4_000_000
_WARM_SMALL, _WARM_LARGE = 8, 1
READY, ARRIVED = "ready", "arrived"


@dataclass(frozen=True)
class Trips:
    """Round trips: there, and back from the other process."""

    times_us: list[float]
    checked_dicts: int
    checked_bytes: int


@dataclass(frozen=True)
class Stream:
    """One way, until the other process said that it has read from every page of the last dict."""

    dicts: int
    bytes_moved: int
    wall_s: float
    cpu_s: float
    """User and system time of both processes with all their threads."""
    checked_dicts: int
    checked_bytes: int


# ---- there and back --------------------------------------------------------------------------------------


def near_trips(transport: Transport, payload: Payload, count: int) -> Trips:
    """`count` timed round trips after a few that are not timed; contents and comparison outside of the clock."""
    warm = warm_trips(payload.size)
    every = max(1, count // CHECKS)
    times, checked_dicts, checked_bytes = [], 0, 0
    transport.prepare(payload.tensors)
    for index in range(-warm, count):
        is_checked = index % every == 0 or index == -warm
        tensors = payload.fill(fresh_nonce()) if is_checked else payload.tensors
        settle(payload.device)
        started = time.perf_counter_ns()
        transport.send(tensors)
        got = transport.recv()
        settle(payload.device)
        took_ns = time.perf_counter_ns() - started
        if index >= 0:
            times.append(took_ns / 1e3)
        if is_checked:
            checked_bytes += check_same(got, tensors, f"round trip {index + warm} of {payload.size.label}")
            checked_dicts += 1
        del got
    return Trips(times, checked_dicts, checked_bytes)


def far_trips(transport: Transport, size: Size, count: int, device: torch.device = CPU) -> None:
    """Send back what comes, as often as `near_trips` sends."""
    transport.prepare(size.empty(device))
    for _ in range(warm_trips(size) + count):
        transport.send(transport.recv())


def warm_trips(size: Size) -> int:
    return _WARM_SMALL if size.dict_bytes < _SMALL_BYTES else _WARM_LARGE


# ---- one way ---------------------------------------------------------------------------------------------


def near_stream(transport: Transport, pair: tuple[Payload, Payload], count: int, channel: Channel) -> Stream:
    """Send one dict that is compared, then `count` on the clock, of which the last is compared after it."""
    first, last = pair
    size = first.size
    nonces = fresh_nonce(), fresh_nonce()
    channel.send(READY, nonces)
    transport.prepare(first.tensors)
    repeated, ending = first.fill(nonces[0]), last.fill(nonces[1])
    transport.send(repeated)
    channel.expect(READY, WAIT_S)
    settle(first.device)
    cpu_before, started = time.process_time(), time.perf_counter()
    for _ in range(count - 1):
        transport.isend(repeated)
    transport.isend(ending)
    transport.settle()
    far_cpu_s = channel.expect(ARRIVED, WAIT_S)
    wall_s = time.perf_counter() - started
    cpu_s = time.process_time() - cpu_before + far_cpu_s
    return Stream(count, count * size.dict_bytes, wall_s, cpu_s, 2, 2 * size.dict_bytes)


def far_stream(
    transport: Transport, wanted: Payload, count: int, channel: Channel, reads: bool = True
) -> None:
    """Read from every page of each dict; say when the last was read; compare the first and the last.

    Args:
        reads: False = only take them: what a kernel of ours would do here is work for a GPU that is measured.
    """
    first, last = channel.expect(READY, WAIT_S)
    transport.prepare(wanted.tensors)
    wanted.fill(first)
    check_same(transport.recv(), wanted.tensors, f"first dict of a stream of {wanted.size.label}")
    wanted.fill(last)
    channel.send(READY)
    cpu_before = time.process_time()
    for _ in range(count):
        got = transport.recv()
        if reads:
            touch(got)
    settle(wanted.device)
    channel.send(ARRIVED, time.process_time() - cpu_before)
    check_same(got, wanted.tensors, f"last dict of a stream of {wanted.size.label}")


def cpu_per_gb(streams: Iterable[Stream]) -> float:
    moved = list(streams)
    return sum(stream.cpu_s for stream in moved) / (sum(stream.bytes_moved for stream in moved) / 1e9)
