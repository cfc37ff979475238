"""What is computed while tensors move? Matrix products in steps, as a stage computes one batch after another."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zmqpp.bench.device import CPU, Mark, mark, settle

_AHEAD = 2
"""Steps that are asked of the device before the first of them is done: an engine has as many batches in flight."""
_CUDA_SIDE, _CPU_SIDE = 4096, 256
_TRIES = 8
_LONGEST_STEP = 256
"""Products; with `_AHEAD` steps fewer than CUDA queues before its calls begin to block."""


@dataclass(frozen=True)
class Computed:
    """One stream of steps."""

    device_s: float
    """From its first product to its last, by the device's clock."""
    calls_us: list[float]
    """How long each step's call of `between` kept the calling thread."""


class Compute:
    """Products of two random matrices on one device; the same memory each time.

    Args:
        device: bf16 on CUDA, float32 on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        side, dtype = (_CPU_SIDE, torch.float32) if device == CPU else (_CUDA_SIDE, torch.bfloat16)
        generator = torch.Generator().manual_seed(side)
        self._left, self._right = (
            torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2)
        )
        self._product = torch.empty_like(self._left)

    def product_s(self) -> float:
        """How long one takes, with the device as warm as it gets in a moment."""
        self._multiply(_TRIES)
        settle(self.device)
        started = mark(self.device)
        self._multiply(_TRIES)
        return started.seconds_to(mark(self.device)) / _TRIES

    def steps(self, count: int, products: int, between: Callable[[int], object]) -> Computed:
        """`count` steps of `products` each; `between` is called after each with its number. Returns with all done."""
        ahead: deque[Mark] = deque()
        calls_us = []
        started = ended = mark(self.device)
        for index in range(count):
            if len(ahead) >= _AHEAD:
                ahead.popleft().wait()
            self._multiply(products)
            ended = mark(self.device)
            ahead.append(ended)
            began_ns = time.perf_counter_ns()
            between(index)
            calls_us.append((time.perf_counter_ns() - began_ns) / 1e3)
        return Computed(started.seconds_to(ended), calls_us)

    def _multiply(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._left, self._right, out=self._product)


def products_for(dict_s: float, product_s: float) -> int:
    """As many as take about twice as long as one dict, so that there is something to hide it behind."""
    return max(1, min(_LONGEST_STEP, -(-int(2e9 * dict_s) // max(1, int(1e9 * product_s)))))
