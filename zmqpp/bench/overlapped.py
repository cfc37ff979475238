"""What do computing and transfers cost one another? One measurement, and the figures made of several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zmqpp.bench.channel import Channel
from zmqpp.bench.compute import Compute, Computed
from zmqpp.bench.device import settle
from zmqpp.bench.medians import percentile
from zmqpp.bench.payload import Payload, Size, fresh_nonce
from zmqpp.bench.transport import WAIT_S, Transport
from zmqpp.bench.turn import ARRIVED, READY


@dataclass(frozen=True)
class Together:
    """A stream of steps, each of which sends a dict, until the other process has the last one."""

    computed: Computed
    wall_s: float
    checked_dicts: int
    checked_bytes: int


def near_together(
    transport: Transport,
    compute: Compute,
    pair: tuple[Payload, Payload],
    shape: tuple[int, int],
    channel: Channel,
) -> Together:
    """As `turn.near_stream`, with matrix products in front of each dict; its other half is `turn.far_stream`.

    Args:
        shape: how many dicts, and how many products before each.
    """
    (first, last), (count, products) = pair, shape
    nonces = fresh_nonce(), fresh_nonce()
    channel.send(READY, nonces)
    transport.prepare(first.tensors)
    repeated, ending = first.fill(nonces[0]), last.fill(nonces[1])
    transport.send(repeated)
    channel.expect(READY, WAIT_S)
    settle(first.device)
    started = time.perf_counter()
    send = lambda index: transport.isend(ending if index == count - 1 else repeated)  # noqa: E731
    computed = compute.steps(count, products, send)
    transport.settle()
    channel.expect(ARRIVED, WAIT_S)
    wall_s = time.perf_counter() - started
    return Together(computed, wall_s, 2, 2 * first.size.dict_bytes)


@dataclass(frozen=True)
class Overlap:
    """One transport at one size in one round."""

    round: int
    transport: str
    size: Size
    steps: int
    products: int
    """Matrix products in front of each dict."""
    alone_s: float
    """The computing, without transfers."""
    compute_s: float
    """The same with transfers."""
    transfer_s: float
    """The transfers alone, until the last one was there."""
    together_s: float
    """Both, until the last dict was there."""
    isend_p50_us: float
    isend_p99_us: float
    device_bytes: int | None = None

    @property
    def slowdown(self) -> float:
        return self.compute_s / self.alone_s

    @property
    def hidden(self) -> float:
        return share_hidden(self.alone_s, self.transfer_s, self.together_s)

    @classmethod
    def of(
        cls, place: tuple[int, str, Size], products: int, alone: Computed, transfer_s: float, both: Together
    ) -> Overlap:
        calls = both.computed.calls_us
        return cls(
            *place,
            steps=len(calls),
            products=products,
            alone_s=alone.device_s,
            compute_s=both.computed.device_s,
            transfer_s=transfer_s,
            together_s=both.wall_s,
            isend_p50_us=percentile(calls, 50),
            isend_p99_us=percentile(calls, 99),
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": str(self.size), "slowdown": self.slowdown, "hidden": self.hidden}


def share_hidden(alone_s: float, transfer_s: float, together_s: float) -> float:
    """Of the time the transfers take by themselves: how much did not come on top of the computing, 0 to 1."""
    on_top = max(0.0, together_s - alone_s)
    return max(0.0, 1 - on_top / transfer_s)


@dataclass(frozen=True)
class OverlapRow:
    """One transport at one size: the medians over its rounds."""

    transport: str
    size: Size
    rounds: int
    slowdown: float
    hidden: float
    isend_p50_us: float
    isend_p99_us: float
    gb_per_s: float
    """Of the transfers alone."""
    device_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": str(self.size), "label": self.size.label}


def overlap_rows(found: Iterable[Overlap]) -> list[OverlapRow]:
    """In the order in which they were first measured."""
    grouped: dict[tuple[str, Size], list[Overlap]] = {}
    for one in found:
        grouped.setdefault((one.transport, one.size), []).append(one)
    return [_row(group) for group in grouped.values()]


def _row(group: Sequence[Overlap]) -> OverlapRow:
    median = {
        name: statistics.median(getattr(one, name) for one in group)
        for name in ("slowdown", "hidden", "isend_p50_us", "isend_p99_us")
    }
    size = group[0].size
    return OverlapRow(
        transport=group[0].transport,
        size=size,
        rounds=len(group),
        **median,
        gb_per_s=statistics.median(one.steps * size.dict_bytes / 1e9 / one.transfer_s for one in group),
        device_bytes=max((held for one in group if (held := one.device_bytes) is not None), default=None),
    )
