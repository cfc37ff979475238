"""What a stage tells the engine about itself, about once a second while it works. Counters only grow.

It travels the ring as the payload of `control.Report`, forwarded by the stages after it without Python.
"""

from __future__ import annotations

import msgspec

from zmqpp._shown import one_line
from zmqpp.errors import MalformedError
from zmqpp.watch.status import Histogram, LastStep, LinkCounters, Memory

__all__ = ["StageReport", "decode", "encode"]


class StageReport(msgspec.Struct):
    """One stage's counters since it became ready; durations in nanoseconds of its own monotonic clock."""

    clock_ns: int
    """When this was written."""
    ready_ns: int
    """When it became ready; `clock_ns - ready_ns` less the three below is idle time."""
    compute_ns: int
    wait_ns: int
    send_ns: int
    steps: int
    tokens: int
    last_step: LastStep | None
    step_seconds: dict[str, Histogram]
    batch_requests: Histogram
    link: LinkCounters
    memory: Memory
    device: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StageReport)


def encode(report: StageReport) -> bytes:
    """One report as msgpack."""
    return _encoder.encode(report)


def decode(payload: bytes) -> StageReport:
    """The report in `payload`.

    Raises:
        MalformedError: it is none.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(
            f"stage report of {len(payload)} bytes cannot be read: {one_line(error)}"
        ) from error
