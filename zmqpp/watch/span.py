"""A span: one stretch of a stage's time in one step."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

from zmqpp._shown import one_line
from zmqpp.errors import MalformedError

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
    host: str = ""
    clock_ns: int = 0
    """When this was made, between the engine's asking and its getting it."""
    clock: str = ""
    """Which clock that is: processes with the same one read the same times."""
    sizes: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """Step -> (tokens, requests); only the engine's part has them."""

    @classmethod
    def here(cls, stage: int, spans: list[Span]) -> StageSpans:
        """Of this process, now."""
        return cls(stage, spans, socket.gethostname(), time.monotonic_ns(), _clock())


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
    """The spans in `payload`.

    Raises:
        MalformedError: it holds none.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"spans of {len(payload)} bytes cannot be read: {one_line(error)}") from error
