"""A span: one stretch of a stage's time in one step."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

__all__ = ["ENGINE", "MAX_SPANS", "Span", "StageSpans", "decode", "encode"]

ENGINE = -1
"""In place of a stage's index."""
MAX_SPANS = 100_000
"""Of one stage in one trace; what comes later is left out, so that the reply stays a few megabytes."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """`kind` is "compute", "wait", "send", or on the engine "step"; nanoseconds of that process's monotonic clock."""

    kind: str
    step: int
    begin_ns: int
    end_ns: int


class StageSpans(msgspec.Struct):
    """One stage's part of a trace."""

    stage: int
    spans: list[Span]
    host: str = msgspec.field(default_factory=socket.gethostname)
    clock_ns: int = msgspec.field(default_factory=time.monotonic_ns)
    """When this was made, between the engine's asking and its getting it."""
    clock: str = msgspec.field(default_factory=lambda: _clock())
    """Which clock that is: processes with the same one read the same times."""
    sizes: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """Step -> (tokens, requests); only the engine's part has them."""


def _clock() -> str:
    """One boot of one kernel, and its time namespace (time_namespaces(7)), which shifts the monotonic clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return f"unknown {os.getpid()}"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StageSpans)


def encode(spans: StageSpans) -> bytes:
    """One stage's spans as msgpack."""
    return _encoder.encode(spans)


def decode(payload: bytes) -> StageSpans:
    """Raises msgspec.DecodeError when `payload` is something else."""
    return _decoder.decode(payload)
