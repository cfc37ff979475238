"""What travels, and did every byte of it arrive? The dict of two tensors, its fresh contents, the comparison."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from zmqpp.bench.device import CPU

NAMES = ("hidden_states", "residual")
"""The keys of vLLM's IntermediateTensors: what one pipeline stage hands to the next."""

TOUCH_BYTES = 4096
"""A receiver reads one element of every page: enough to show that the page is there, little enough not to
become the thing that is measured."""

Tensors = dict[str, torch.Tensor]


class Mismatch(Exception):
    """Something else arrived than what was sent."""


@dataclass(frozen=True, order=True)
class Size:
    """Two bf16 tensors [rows, columns]."""

    rows: int
    columns: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """`64x4096`. Raises ValueError."""
        rows, x, columns = text.strip().partition("x")
        if not (x and rows.isdigit() and columns.isdigit()):
            raise ValueError(f"size {text!r} is not ROWSxCOLUMNS, such as 64x4096")
        size = cls(int(rows), int(columns))
        if not size.dict_bytes or size.dict_bytes % 16:
            raise ValueError(f"size {text!r}: each tensor must have a multiple of 8 bytes, and at least 8")
        return size

    @property
    def dict_bytes(self) -> int:
        return len(NAMES) * self.rows * self.columns * torch.bfloat16.itemsize

    @property
    def label(self) -> str:
        """In decimal units, as the design's table has it: 16 KB, 1 MB, 34 MB."""
        kilobytes = self.dict_bytes / 1e3
        return f"{kilobytes:.0f} KB" if kilobytes < 1000 else f"{kilobytes / 1e3:.0f} MB"

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def empty(self, device: torch.device = CPU) -> Tensors:
        """Memory for one dict, touched, so that no first use pays for page faults."""
        return {
            name: torch.zeros(self.rows, self.columns, dtype=torch.bfloat16, device=device) for name in NAMES
        }


class Payload:
    """A dict with contents that both processes can make from a number.

    The random base depends on the size alone; `fill(nonce)` turns it into contents of which every 8-byte word
    differs from those of any other nonce, by one pass over the memory instead of millions of random numbers.
    """

    def __init__(self, size: Size, device: torch.device = CPU) -> None:
        self.size, self.device = size, device
        self.tensors = size.empty(device)
        generator = torch.Generator().manual_seed(size.rows * 1_000_003 + size.columns)
        for words in self._words():  # drawn on the CPU: other devices have numbers of their own
            words.copy_(torch.empty(words.shape, dtype=words.dtype).random_(generator=generator))
        self._nonce = 0

    def fill(self, nonce: int) -> Tensors:
        """The tensors, with the contents that belong to `nonce`."""
        for words in self._words():
            words.bitwise_xor_(self._nonce ^ nonce)
        self._nonce = nonce
        return self.tensors

    def copied_from(self, other: Payload) -> None:
        """Its tensors were overwritten with the other's, which has the same size and so the same base."""
        self._nonce = other._nonce

    def _words(self) -> list[torch.Tensor]:
        return [tensor.view(-1).view(torch.int64) for tensor in self.tensors.values()]


def fresh_nonce() -> int:
    """A number no earlier contents were made from, for all practical purposes; fits a signed word."""
    return random.getrandbits(63)


def touch(tensors: Tensors) -> None:
    """Read one element of every `TOUCH_BYTES` of every tensor; the same for every transport."""
    for tensor in tensors.values():
        step = TOUCH_BYTES // tensor.element_size()
        torch.as_strided(tensor, (-(-tensor.numel() // step),), (step,)).clone()


def rehearse(payload: Payload) -> None:
    """Everything that is done to a payload, once: CUDA loads what it needs when it is first used."""
    touch(payload.fill(fresh_nonce()))
    check_same({name: tensor.clone() for name, tensor in payload.tensors.items()}, payload.tensors, "itself")


def check_same(got: Tensors, wanted: Tensors, where: str) -> int:
    """The number of bytes compared.

    Raises:
        Mismatch: names, types, shapes, devices or any bit differ. Compared where they are: one word comes back.
    """
    if list(got) != list(wanted):
        raise Mismatch(f"{where}: got the keys {list(got)}, sent were {list(wanted)}")
    for name, tensor in wanted.items():
        other = got[name]
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            raise Mismatch(
                f"{where}: {name} is {other.dtype} {list(other.shape)}, "
                f"sent was {tensor.dtype} {list(tensor.shape)}"
            )
        if other.device != tensor.device:
            raise Mismatch(f"{where}: {name} came to {other.device}, wanted was {tensor.device}")
        if not _is_same(other, tensor):
            raise Mismatch(f"{where}: {name} differs at byte {_first_difference(other, tensor)}")
    return sum(tensor.nbytes for tensor in wanted.values())


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compared as integers: a NaN differs from itself. Words are five times as fast as bytes."""
    bytes_of = _bytes(one), _bytes(other)
    is_aligned = all(
        flat.data_ptr() % 8 == 0 and flat.storage_offset() % 8 == 0 and flat.nbytes % 8 == 0
        for flat in bytes_of
    )
    first, second = (flat.view(torch.int64) for flat in bytes_of) if is_aligned else bytes_of
    return torch.equal(first, second)


def _first_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((_bytes(one) != _bytes(other)).nonzero()[0])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
