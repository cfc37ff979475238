"""Where do the tensors of a benchmark lie, and when is work done there? CUDA's streams and events, or plain calls."""

from __future__ import annotations

import time
from typing import Any

import torch

from zmqpp.errors import ConfigError

__all__ = ["CPU", "Mark", "bytes_in_use", "let_go", "mark", "parse_device", "pinned", "settle", "use"]

CPU = torch.device("cpu")


def parse_device(text: str) -> torch.device:
    """`cpu`, `cuda` (its first device) or `cuda:N`.

    Raises:
        ConfigError: it is no such name, or that device is not here.
    """
    name, colon, number = text.partition(":")
    if text == "cpu":
        return CPU
    if name != "cuda" or (colon and not number.isdecimal()):
        raise ConfigError(f"device {text!r}: give cpu, cuda or cuda:N")
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise ConfigError(f"no CUDA device here: torch {torch.__version__} is built without CUDA")
    count = torch.cuda.device_count()
    if count == 0 or not torch.cuda.is_available():
        raise ConfigError("no CUDA device here: torch finds no driver, or no GPU that it may use")
    if int(number or 0) >= count:
        raise ConfigError(f"no CUDA device {number} here: there are {count}, counted from 0")
    return torch.device("cuda", int(number or 0))


def use(device: torch.device) -> None:
    """Make it the current one of this process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def settle(device: torch.device) -> None:
    """Return when the device has done what this thread asked of it on its current stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Mark:
    """A point in the device's work. On the CPU, work is done when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            # A host that waits for it sleeps: other threads need the cores.
            self._event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))
        self._at = time.perf_counter()

    def wait(self) -> None:
        """Block until the device has come here."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_to(self, later: Mark) -> float:
        """By the device's own clock; waits for both."""
        if self._event is None:
            return later._at - self._at
        self.wait()
        later.wait()
        return float(self._event.elapsed_time(later._event)) / 1e3


def mark(device: torch.device) -> Mark:
    """Here, in what the current stream does."""
    return Mark(device)


def pinned(like: torch.Tensor) -> torch.Tensor:
    """Host memory that the device's copy engines reach by themselves; on the CPU, any."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


def let_go(device: torch.device) -> None:
    """Give back what torch only keeps for later."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def bytes_in_use(device: torch.device) -> int:
    """Of the device's memory, by all processes; 0 for the CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free
