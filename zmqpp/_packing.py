"""Tensors in a half or a quarter of their bytes, for slow links: a byte a value, and a scale a run of 128 of them.

What comes back is close, not equal. Prose: docs/wire_format.md, section "Packed tensors"; what it costs and gains:
docs/performance.md. The arithmetic is the engine's, on the CPU and on a GPU alike (csrc/pack/).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import TypeVar

import torch

from zmqpp import _engine
from zmqpp._manifest import PACKED_FORMATS, PACKED_NUMBERS, PACKED_RUN
from zmqpp.errors import ConfigError, DeviceError, UnsupportedError

__all__ = ["LEAST_BYTES", "pack", "pays", "scales_of", "unpack", "unpack_into"]

LEAST_BYTES = 4096
"""Of a tensor that is packed: what is smaller waits for the link's latency, not for its bytes."""

_log = logging.getLogger("zmqpp")
_Made = TypeVar("_Made")


def pays(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of those that are packed: float, of two dimensions or more, and made smaller by it."""
    if tensor.dtype not in _NAMES or tensor.dim() < 2 or tensor.nbytes < LEAST_BYTES:
        return False
    return tensor.numel() + 4 * scales_of(tensor.shape) < tensor.nbytes


def scales_of(dims: Sequence[int]) -> int:
    """How many scales a packed tensor of these dimensions has, none of them 0."""
    return prod(dims[:-1]) * -(-dims[-1] // PACKED_RUN)


def pack(tensor: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes and the scales of a tensor that `pays`; where it lies itself, or in CPU memory.

    On a GPU the current stream makes them: nothing waits for it here.

    Raises:
        UnsupportedError: a tensor without memory. ConfigError: no such form.
    """
    if form not in PACKED_FORMATS:
        raise ConfigError(
            f"there is no form {form!r} to pack tensors in; there are {', '.join(PACKED_FORMATS)}"
        )
    if tensor.is_cuda:
        made = _if_there_are_kernels(lambda: _pack_there(tensor.contiguous(), form))
        if made is not None:
            return made
    plain = tensor.cpu().contiguous()
    if not plain.data_ptr():
        raise UnsupportedError("a tensor without memory")
    codes, scales = _memory(plain.numel()), _memory(4 * scales_of(plain.shape))
    _engine.pack(*_described(plain, form), plain.data_ptr(), codes.data_ptr(), scales.data_ptr())
    return codes, scales


def unpack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    number: str,
    form: str,
    dims: Sequence[int],
    device: torch.device | None,
) -> torch.Tensor:
    """The tensor that was packed, on `device`; None: in CPU memory.

    Args:
        codes, scales: bytes in CPU memory, as many as `dims` make: the caller has checked that.
    """
    dtype = PACKED_NUMBERS[number]
    if device is not None and device.type == "cuda":
        there = torch.empty(list(dims), dtype=dtype, device=device)
        unpack_into(there, codes.to(there.device), scales.to(there.device), form)
        return there
    out = _memory(prod(dims) * dtype.itemsize).view(dtype).view(list(dims))
    _engine.unpack(*_described(out, form), out.data_ptr(), codes.data_ptr(), scales.data_ptr())
    return out if device is None else out.to(device)


def unpack_into(out: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, form: str) -> None:
    """The values of `out`, from bytes on the same GPU, made by its current stream: nothing waits for it here."""
    if _if_there_are_kernels(lambda: _unpack_there(out, codes, scales, form)) is None:
        out.copy_(unpack(codes.cpu(), scales.cpu(), _NAMES[out.dtype], form, out.shape, None))


_NAMES = {dtype: name for name, dtype in PACKED_NUMBERS.items()}


def _described(tensor: torch.Tensor, form: str) -> tuple[str, str, int, int]:
    columns = tensor.shape[-1]
    return _NAMES[tensor.dtype], form, tensor.numel() // columns, columns


def _memory(size: int) -> torch.Tensor:
    """Bytes that were used before, where there are some: large fresh memory costs a page fault each 4 KiB."""
    return torch.frombuffer(_engine.make_block(size), dtype=torch.uint8)


# ---- on a GPU --------------------------------------------------------------------------------------------


def _pack_there(tensor: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(tensor.numel(), dtype=torch.uint8, device=tensor.device)
    scales = torch.empty(4 * scales_of(tensor.shape), dtype=torch.uint8, device=tensor.device)
    addresses = tensor.data_ptr(), codes.data_ptr(), scales.data_ptr()
    _engine.pack_on_device(*_described(tensor, form), *addresses, *_place(tensor))
    return codes, scales


def _unpack_there(out: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, form: str) -> torch.Tensor:
    addresses = out.data_ptr(), codes.data_ptr(), scales.data_ptr()
    _engine.unpack_on_device(*_described(out, form), *addresses, *_place(out))
    return out


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """The number of its device, and the stream that torch computes on there."""
    device = tensor.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream


_why_not = ""
"""Why kernels could not be used; said once, and they are not tried again."""


def _if_there_are_kernels(work: Callable[[], _Made]) -> _Made | None:
    """What `work` made, or None: by the CPU, then."""
    global _why_not
    if not _why_not:
        try:
            return work()
        except (DeviceError, UnsupportedError) as error:
            _why_not = str(error)
            _log.warning(
                "%s; tensors of a GPU are packed and unpacked on the CPU, which makes it wait", _why_not
            )
    return None
