"""Tensors of the CPU that pass for CUDA's, over the fake driver: whatever copies them does it late, on streams.

For a process of its own: torch is changed for good. ZMQPP_CUDA_LIBRARY names the fake driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

_driver = ctypes.CDLL(os.environ["ZMQPP_CUDA_LIBRARY"])
_on_device: dict[
    int, torch.UntypedStorage
] = {}  # kept: an address stands for one tensor as long as a test runs
_context = ctypes.c_void_p()
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _check(result: int) -> None:
    if result:
        raise RuntimeError(f"the fake driver says {result}")


class Stream:
    """A stream of the fake driver, as torch's."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        handle = ctypes.c_void_p()
        _check(_driver.cuCtxPushCurrent_v2(_context))
        _check(_driver.cuStreamCreateWithPriority(ctypes.byref(handle), 1, priority))
        _check(_driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())))
        self.cuda_stream = int(handle.value or 0)
        self.captures = False
        self._kept: list[Any] = []

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Later, in order. Both must stay until `finish`."""
        arguments = [ctypes.c_uint64(to.data_ptr()), ctypes.c_uint64(source.data_ptr())]
        size = ctypes.c_size_t(source.nbytes)
        _check(_driver.cuMemcpyAsync(*arguments, size, ctypes.c_void_p(self.cuda_stream)))

    def block(self) -> threading.Event:
        """What is given from now on is not begun before the event is set."""
        event = threading.Event()
        function = _HOST_FUNCTION(lambda _: event.wait() and None)
        self._kept.append(function)
        _check(_driver.cuLaunchHostFunc(ctypes.c_void_p(self.cuda_stream), function, None))
        return event

    def is_idle(self) -> bool:
        return not _driver.cuStreamQuery(ctypes.c_void_p(self.cuda_stream))

    def capture(self, on: bool) -> None:
        """As if it captured a CUDA graph."""
        _check(_driver.fake_capture(ctypes.c_void_p(self.cuda_stream), int(on)))
        self.captures = on

    def finish(self) -> None:
        """Return when all that was given has been done."""
        while not self.is_idle():
            pass


def zeros(*dims: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """A tensor in the fake driver's memory, which passes for one of cuda:0."""
    size = max(math.prod(dims) * dtype.itemsize, 1)
    address = ctypes.c_uint64()
    _check(_driver.cuCtxPushCurrent_v2(_context))
    _check(_driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)))
    _check(_driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())))
    memory = (ctypes.c_char * size).from_address(address.value)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)[: math.prod(dims) * dtype.itemsize]
    _on_device[address.value] = tensor.untyped_storage()
    return tensor.view(dtype).view(dims)


def is_on_device(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _on_device


_current: list[Stream] = []


def current_stream(device: Any = None) -> Stream:
    return _current[-1]


@contextlib.contextmanager
def on(stream: Stream) -> Iterator[None]:
    """It is the current one meanwhile."""
    _current.append(stream)
    try:
        yield
    finally:
        _current.pop()


def install() -> Stream:
    """Change torch, and zmqpp where it asks torch's C++; returns the current stream."""
    _check(_driver.cuInit(0))
    _check(_driver.cuDevicePrimaryCtxRetain(ctypes.byref(_context), 0))
    current = Stream()
    _current.append(current)
    empty = torch.empty

    def empty_anywhere(*sizes: Any, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type == "cpu":
            return empty(*sizes, **options)
        return zeros(*torch.Size(sizes[0] if isinstance(sizes[0], list) else sizes), **options)

    torch.empty = empty_anywhere
    torch.cuda.Stream = Stream  # type: ignore[misc, assignment]
    torch.cuda.stream = on  # type: ignore[assignment]
    torch.cuda.current_stream = current_stream  # type: ignore[assignment]
    torch.cuda.is_current_stream_capturing = lambda: current_stream().captures
    torch.cuda.device = lambda device: contextlib.nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: 0
    torch.Tensor.is_cuda = property(is_on_device)  # type: ignore[assignment]
    torch.Tensor.is_cpu = property(lambda tensor: not is_on_device(tensor))  # type: ignore[assignment]
    there, here = torch.device("cuda:0"), torch.device("cpu")
    torch.Tensor.device = property(lambda tensor: there if is_on_device(tensor) else here)  # type: ignore[assignment]
    torch.Tensor.get_device = lambda tensor: 0 if is_on_device(tensor) else -1  # type: ignore[method-assign]
    torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[method-assign]
    from zmqpp import _arrival, _tensors

    _arrival._raw_stream = lambda device: current_stream().cuda_stream
    _tensors._describe = _tensors._describe_plain  # DLPack would tell the truth
    return current
