"""Dicts that both ends can make: number N has the same bytes everywhere, and the device itself says if they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

from zmqpp.bench.compute import Compute
from zmqpp.bench.device import Mark, mark, settle, use
from zmqpp.bench.payload import Payload, Size
from zmqpp.bench.targets import LARGE, MEDIUM, SMALL
from zmqpp.transport import Link

_READ_EVERY = 500


def size_of(number: int) -> Size:
    """Mostly decode steps, some batches, a few prefills."""
    return LARGE if number % 50 == 49 else MEDIUM if number % 5 == 4 else SMALL


class Sending:
    """Each size has one dict, overwritten by the stream as soon as its ticket says that it may."""

    def __init__(self, link: Link, device: torch.device) -> None:
        self._link, self._device = link, device
        self._payloads: dict[Size, Payload] = {}
        self._tickets: dict[Size, Any] = {}

    def send(self, number: int, size: Size | None = None) -> None:
        size = size or size_of(number)
        if size not in self._payloads:
            self._payloads[size] = Payload(size, self._device)
        if size in self._tickets:
            self._tickets[size].wait()
        tensors = self._payloads[size].fill(number)
        self._tickets[size] = self._link.isend_dict({"number": number, **tensors})

    def settle(self) -> None:
        for ticket in self._tickets.values():
            ticket.wait()


class Checking:
    """Compares on the device; a word comes back now and then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._payloads: dict[Size, Payload] = {}
        self._wrong: list[torch.Tensor] = []
        self._numbers: list[int] = []

    def check(self, got: dict[str, Any], number: int, size: Size | None = None) -> None:
        assert got.pop("number") == number, f"dict {number} is missing"
        size = size or size_of(number)
        if size not in self._payloads:
            self._payloads[size] = Payload(size, self._device)
        wanted = self._payloads[size].fill(number)
        assert list(got) == list(wanted)
        for name, tensor in wanted.items():
            assert (got[name].device, got[name].shape, got[name].dtype) == (
                *(tensor.device, tensor.shape),
                tensor.dtype,
            )
            self._wrong.append((got[name].view(torch.int64) != tensor.view(torch.int64)).any())
            self._numbers.append(number)
        if len(self._wrong) >= _READ_EVERY:
            self.read()

    def read(self) -> None:
        """Every byte checked so far was right."""
        if self._wrong:
            flags = torch.stack(self._wrong).tolist()
            wrong = sorted({number for number, flag in zip(self._numbers, flags, strict=True) if flag})
            assert not wrong, f"other bytes in dicts {wrong[:10]}, {len(wrong)} in all"
        self._wrong, self._numbers = [], []


class Busy:
    """A stream of matrix products beside all this, a few ahead of the device at most."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._compute = Compute(device)
        self._ahead: deque[Mark] = deque()

    def go_on(self) -> None:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            self._compute.steps(1, 1, lambda _: None)
            self._ahead.append(mark(self._device))
        if len(self._ahead) > 8:
            self._ahead.popleft().wait()


# ---- in a peer's process ---------------------------------------------------------------------------------


def send_all(link: Link, device: torch.device, numbers: Iterable[int], size: Size | None = None) -> None:
    """While something is computed; returns when the receiver can have all of them."""
    use(device)
    sending, busy = Sending(link, device), Busy(device)
    for number in numbers:
        sending.send(number, size)
        busy.go_on()
    sending.settle()
    settle(device)


def check_all(link: Link, device: torch.device, numbers: Iterable[int], size: Size | None = None) -> int:
    """How many came, all of them right."""
    use(device)
    checking, busy, count = Checking(device), Busy(device), 0
    for number in numbers:
        checking.check(link.recv_dict(timeout_s=60), number, size)
        busy.go_on()
        count += 1
    checking.read()
    return count
