"""Received tensors on their way to a CUDA device, beside what the current stream computes.

They are allocated on a stream of their own, on which the copies run as soon as they are asked for; whichever stream
is current when somebody waits for them does so by an event, and the caching allocator is told that it uses them. So
nothing waits on the host, and each is an ordinary tensor afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from zmqpp import _engine
from zmqpp.errors import DeviceError, ResourceError, UnsupportedError

__all__ = [
    "Arrival",
    "arrival_of",
    "check_no_capture",
    "current_streams",
    "is_captured",
    "is_reached",
    "of_this_machine",
]


@functools.cache
def is_reached() -> bool:
    """Whether the engine copies from and to CUDA devices by itself; else tensors go through `.cpu()`."""
    return bool(_engine.describe_cuda()["works"])


def current_streams(spans: list[Any]) -> list[tuple[int, int]]:
    """The current stream of each device that a buffer of `spans` is on: (device, handle)."""
    devices = sorted({span[2] for span in spans if len(span) == 3})
    return [(device, _raw_stream(device)) for device in devices]


def is_captured(device: torch.device) -> bool:
    """Whether what the current stream of `device` is given becomes part of a CUDA graph."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def check_no_capture(device: torch.device) -> None:
    """Before a dict is taken, which could not be taken again.

    Raises:
        UnsupportedError: the current stream captures a CUDA graph, of which a receive cannot be a part.
    """
    if is_captured(device):
        raise UnsupportedError(
            "receive: the current stream captures a CUDA graph; receive before or after the capture"
        )


def of_this_machine(error: BaseException, what: str) -> ResourceError | None:
    """What torch raised, if it tells of this machine and not of what was received; `what`: could not be made."""
    text = str(error).partition("\n")[0][:300]
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return ResourceError(f"receive: no memory for {what}: {text}", op="receive", code="resource")
    if isinstance(error, RuntimeError) and text.startswith(("CUDA error", "CUDA driver error")):
        return DeviceError(f"receive: {what}: {text}", op="receive", code="device")
    return None


def arrival_of(block: _engine.Block | None, device: torch.device) -> Arrival | None:
    """Where `block` goes to `device`; None: the engine has nothing to copy there."""
    return Arrival(block, device) if block is not None and is_reached() else None


class Arrival:
    """The tensors of one dict that go to `device`.

    Args:
        block: what the dict lies in; kept until the device has read it.
        device: a CUDA device with an index.
    """

    def __init__(self, block: _engine.Block, device: torch.device) -> None:
        self._block: _engine.Block | None = block
        self._device = device
        self._stream = _arrivals(device)
        self._tensors: list[torch.Tensor] = []
        self._packed: list[torch.Tensor] = []
        self._targets: list[tuple[int, int, int]] = []
        self._work: list[Callable[[], None]] = []
        self._copies: _engine.Arrival | None = None
        self._told: set[int] = set()  # streams that the allocator knows of

    def tensor(self, dims: list[int], dtype: torch.dtype, offset: int, size: int) -> torch.Tensor:
        """One of `size` bytes at `offset` of the block; its values come with `start`.

        Raises:
            ResourceError: the device has no memory for it. DeviceError: it has failed.
        """
        tensor = self._allocate(dims, dtype)
        self._tensors.append(tensor)
        self._targets.append((tensor.data_ptr(), offset, size))
        return tensor

    def made(
        self,
        dims: list[int],
        dtype: torch.dtype,
        places: list[tuple[int, int]],
        make: Callable[..., None],
    ) -> torch.Tensor:
        """One that `make(tensor, *bytes)` fills there, from the bytes that come of each (offset, size). As `tensor`."""
        tensor = self._allocate(dims, dtype)
        self._tensors.append(tensor)
        parts = [self._allocate([size], torch.uint8) for _, size in places]
        for part, place in zip(parts, places, strict=True):
            self._targets.append((part.data_ptr(), *place))
        self._packed += parts
        self._work.append(functools.partial(make, tensor, *parts))
        return tensor

    def start(self) -> None:
        """Ask for the copies, and for what is to be made of them.

        Raises:
            DeviceError: CUDA's own words.
        """
        if self._block is None or not self._targets:
            return
        copies = _engine.start_arrival(
            self._block, self._targets, self._device.index, self._stream.cuda_stream
        )
        if self._work:
            with torch.cuda.stream(self._stream):
                for work in self._work:
                    work()
        copies.finish()
        self._copies = copies
        self._block = None
        self._packed, self._work = [], []  # of this stream, on which they are used again later

    def hold_back(self) -> None:
        """The device's current stream uses the tensors: it waits for them, the caller does not. Any number of times.

        Raises:
            UnsupportedError: it captures a CUDA graph, and they are not there yet. DeviceError: CUDA's own words.
        """
        if self._copies is None:
            return
        current = torch.cuda.current_stream(self._device)
        try:
            self._copies.hold_back(current.cuda_stream)
        except UnsupportedError:  # a graph may use what is there already
            if not self._copies.is_over():
                raise
        if current.cuda_stream not in self._told:
            self._told.add(current.cuda_stream)
            for tensor in self._tensors:
                tensor.record_stream(current)

    def is_over(self) -> bool:
        """Whether all of it is there. Raises DeviceError: it never will be."""
        return self._copies is None or self._copies.is_over()

    def _allocate(self, dims: list[int], dtype: torch.dtype) -> torch.Tensor:
        before = _engine.exchange_capture_mode(_RELAXED)
        try:
            with torch.cuda.stream(self._stream):
                return torch.empty(dims, dtype=dtype, device=self._device)
        except RuntimeError as error:
            ours = of_this_machine(error, f"a tensor of {dtype} {dims} on {self._device}")
            raise ours or error from None
        finally:
            _engine.exchange_capture_mode(before)


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
