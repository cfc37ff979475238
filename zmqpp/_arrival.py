"""Received tensors on their way to a CUDA device, beside what the current stream computes.

They are allocated on a stream of their own, on which the copies run as soon as they are asked for; the current stream
waits for them by an event, and the caching allocator is told that it uses them. So nothing waits on the host, and each
is an ordinary tensor afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from zmqpp import _engine
from zmqpp.errors import UnsupportedError

__all__ = ["Arrival", "check_no_capture", "current_streams", "is_reached"]


@functools.cache
def is_reached() -> bool:
    """Whether the engine copies from and to CUDA devices by itself; else tensors go through `.cpu()`."""
    return bool(_engine.describe_cuda()["works"])


def current_streams(spans: list[Any]) -> list[tuple[int, int]]:
    """The current stream of each device that a buffer of `spans` is on: (device, handle)."""
    devices = sorted({span[2] for span in spans if len(span) == 3})
    return [(device, _raw_stream(device)) for device in devices]


def check_no_capture() -> None:
    """Before a dict is taken, which could not be taken again.

    Raises:
        UnsupportedError: the current stream captures a CUDA graph, of which a receive cannot be a part.
    """
    if torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            "receive: the current stream captures a CUDA graph; receive before or after the capture"
        )


class Arrival:
    """The tensors of one dict that go to `device`.

    Args:
        block: what the dict lies in; kept until the device has read it.
        device: a CUDA device with an index.
    """

    def __init__(self, block: _engine.Block, device: torch.device) -> None:
        self._block = block
        self._device = device
        self._stream = _arrivals(device)
        self._tensors: list[torch.Tensor] = []
        self._targets: list[tuple[int, int, int]] = []
        self._work: list[Callable[[], None]] = []

    def tensor(self, dims: list[int], dtype: torch.dtype, offset: int, size: int) -> torch.Tensor:
        """One of `size` bytes at `offset` of the block; its values come with `start`."""
        before = _engine.exchange_capture_mode(_RELAXED)
        try:
            with torch.cuda.stream(self._stream):
                tensor = torch.empty(dims, dtype=dtype, device=self._device)
        finally:
            _engine.exchange_capture_mode(before)
        self._tensors.append(tensor)
        self._targets.append((tensor.data_ptr(), offset, size))
        return tensor

    def then(self, work: Callable[[], None]) -> None:
        """What the current stream is to do with them once they are there."""
        self._work.append(work)

    def start(self) -> None:
        """Ask for the copies; the device's current stream waits for them.

        Raises:
            DeviceError: CUDA's own words.
        """
        if not self._targets:
            return
        current = torch.cuda.current_stream(self._device)
        _engine.start_arrival(
            self._block, self._targets, self._device.index, self._stream.cuda_stream, current.cuda_stream
        )
        for tensor in self._tensors:
            tensor.record_stream(current)
        for work in self._work:
            work()


_RELAXED = 2
"""Of cuThreadExchangeStreamCaptureMode: to allocate spoils no graph that another thread captures."""


@functools.cache
def _arrivals(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def _raw_stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


_get_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
if _get_raw_stream is not None:  # without an object around it
    _raw_stream = _get_raw_stream
