"""Dicts that both ends can make: number N of a seed is the same everywhere, and every byte of it can be checked."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from tests.links import assert_same
from zmqpp._tensors import WIRE_DTYPES
from zmqpp.config import TransportConfig

MIB = 1 << 20
LARGEST = 400 * MIB
_POOL_BYTES = 64 * MIB - 64
"""No power of two, so that nothing repeats at the distance of a block, chunk or page."""
_LARGE = MIB
"""From here on tensors are checked in pieces, without making them a second time."""
_DTYPES = sorted(WIRE_DTYPES)
_ARRAY_DTYPES = ("u1", ">i4", "<f8", "S5", ">c16", "M8[s]")


@dataclass(frozen=True)
class Part:
    """One value: `size` bytes of the pool from `start` on, seen as something."""

    kind: str
    start: int
    size: int
    dtype: str = ""
    rows: int = 1


class Content:
    """The dicts of one direction.

    Args:
        seed: what both ends have agreed on.
        config: sizes lie mostly around its limits.
    """

    def __init__(self, seed: int, config: TransportConfig) -> None:
        self._seed = seed
        self._edges = _edges(config)
        self._pool = _pool()

    def parts(self, number: int) -> dict[str, Part]:
        """What dict `number` consists of."""
        draw = random.Random(f"{self._seed}/{number}")
        parts = {f"{kind}{i}": self._part(draw, kind) for i, kind in enumerate(_kinds(draw))}
        # One decides about the size of all of it: the others are small.
        if parts and draw.random() < 0.7:
            parts["main"] = self._tensor(draw, self._size(draw))
        return parts

    def make(self, number: int, private: bool) -> dict[str, Any]:
        """Dict `number`; if `private`, its tensors may be overwritten, else they are views of the pool."""
        values: dict[str, Any] = {"number": number}
        for key, part in self.parts(number).items():
            value = self._value(part)
            values[key] = value.clone() if private and part.kind == "tensor" else value
        return values

    def check(self, number: int, got: dict[str, Any]) -> int:
        """How many bytes it had.

        Raises:
            AssertionError: it is not dict `number`.
        """
        parts = self.parts(number)
        assert list(got) == ["number", *parts], list(got)
        assert got["number"] == number, f"{got['number']} came"
        for key, part in parts.items():
            if part.kind == "tensor" and part.size >= _LARGE:
                self._check_large(part, got[key])
            else:
                assert_same(got[key], self._value(part))
        return sum(part.size for part in parts.values())

    def _part(self, draw: random.Random, kind: str) -> Part:
        size = draw.choice((0, 1, 63, 64, 65, draw.randrange(5000)))
        if kind == "tensor":
            return self._tensor(draw, size)
        if kind in ("bytes", "text") and draw.random() < 0.2:
            size = 65536 + draw.randrange(-2, 3)  # around what travels as a buffer
        dtype = draw.choice(_ARRAY_DTYPES) if kind == "array" else ""
        return Part(kind, self._start(draw), size, dtype)

    def _tensor(self, draw: random.Random, size: int) -> Part:
        dtype = draw.choice(_DTYPES)
        itemsize = WIRE_DTYPES[dtype].itemsize
        size -= size % itemsize
        rows = draw.choice([n for n in (1, 2, 3, 16) if size // itemsize % n == 0])
        return Part("tensor", self._start(draw), size, dtype, rows)

    def _start(self, draw: random.Random) -> int:
        return 16 * draw.randrange(_POOL_BYTES // 16)  # aligned for every dtype

    def _size(self, draw: random.Random) -> int:
        what = draw.random()
        if what < 0.6:
            edge = draw.choice(self._edges)
            if edge > 16 * MIB and draw.random() < 0.95:
                edge = self._edges[0]
            return max(0, edge + draw.choice((0, 0, 64, -64, 1, -1, draw.randrange(-300, 300))))
        if what < 0.995:
            return int(2 ** draw.uniform(0, 24))
        return draw.randrange(100 * MIB, LARGEST)

    def _value(self, part: Part) -> Any:
        if part.kind == "tensor":
            flat = torch.cat(list(self._pieces(part))) if part.size else torch.empty(0, dtype=torch.uint8)
            return flat.view(WIRE_DTYPES[part.dtype]).view(part.rows, -1)
        raw = b"".join(piece.numpy().tobytes() for piece in self._pieces(part))
        if part.kind == "array":
            dtype = np.dtype(part.dtype)
            return np.frombuffer(raw[: len(raw) - len(raw) % dtype.itemsize], dtype)
        if part.kind == "text":
            return raw.decode("latin-1")
        return raw if part.kind == "bytes" else [raw[:40], [part.size, None, {"k": part.start, 7: 0.5}]]

    def _pieces(self, part: Part) -> Iterator[torch.Tensor]:
        """Its bytes, as views of the pool, which repeats itself."""
        at, left = part.start, part.size
        while left > 0:
            piece = self._pool[at : at + left]
            yield piece & 1 if part.dtype == "bool" else piece
            at, left = 0, left - len(piece)

    def _check_large(self, part: Part, got: torch.Tensor) -> None:
        dtype = WIRE_DTYPES[part.dtype]
        assert (got.dtype, got.shape) == (dtype, (part.rows, part.size // dtype.itemsize // part.rows))
        found, at = got.view(-1).view(torch.uint8), 0
        for piece in self._pieces(part):
            assert torch.equal(found[at : at + len(piece)], piece), f"bytes {at}..{at + len(piece)} of {part}"
            at += len(piece)


def control_body(seed: int, number: int) -> bytes:
    """The body of control message `number`."""
    draw = random.Random(f"{seed}/control/{number}")
    size = draw.choice((0, 1, 100, 4096, 4097, draw.randrange(100_000)))
    return (b"%d/%d " % (seed, number) + draw.randbytes(size))[:size]


def _kinds(draw: random.Random) -> list[str]:
    if draw.random() < 0.03:
        return []
    return draw.choices(("tensor", "array", "bytes", "text", "list"), (6, 1, 1, 1, 1), k=draw.randrange(1, 6))


def _edges(config: TransportConfig) -> list[int]:
    """Sizes at which something else happens: every limit of the configuration, and some of its multiples."""
    sizes = {getattr(config, field.name) for field in fields(config) if field.name.endswith("_bytes")}
    sizes |= {config.chunk_bytes * n for n in (2, config.pool_chunks)} | {0, 64}
    return sorted(size for size in sizes if size <= LARGEST)


@functools.cache
def _pool() -> torch.Tensor:
    return torch.randint(
        0, 256, (_POOL_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
