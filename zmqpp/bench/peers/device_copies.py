"""What are the limits of a GPU's tensors: to pinned host memory, back from it, from device to device?"""

from __future__ import annotations

import time

import torch

from zmqpp.bench.device import CPU, mark, pinned
from zmqpp.bench.payload import Payload, Tensors, check_same
from zmqpp.bench.turn import Stream

Pair = tuple[Payload, Payload]


def copy_out(pair: Pair, count: int, far_device: torch.device) -> Stream:
    """Device to pinned host memory."""
    source, target = pair[0].tensors, _pinned_like(pair[0].tensors)
    wanted = {name: tensor.to(CPU) for name, tensor in source.items()}
    return _timed(source, target, wanted, count, pair[0].device, "device to host")


def copy_in(pair: Pair, count: int, far_device: torch.device) -> Stream:
    """Pinned host memory to the device."""
    source, target = _pinned_like(pair[0].tensors), pair[1].tensors
    _copy(pair[0].tensors, source)
    made = _timed(source, target, pair[0].tensors, count, pair[0].device, "host to device")
    pair[1].copied_from(pair[0])
    return made


def copy_across(pair: Pair, count: int, far_device: torch.device) -> Stream:
    """To the device of the other process, which may be the same."""
    source = pair[0].tensors
    target = {name: torch.empty_like(tensor, device=far_device) for name, tensor in source.items()}
    wanted = {name: tensor.to(far_device) for name, tensor in source.items()}
    return _timed(source, target, wanted, count, pair[0].device, "device to device")


def _timed(
    source: Tensors, target: Tensors, wanted: Tensors, count: int, device: torch.device, what: str
) -> Stream:
    """By the device's own clock: what its copy engine needs, without the calls."""
    _copy(source, target)
    cpu_before, started = time.process_time(), mark(device)
    for _ in range(count):
        _copy(source, target)
    wall_s, cpu_s = started.seconds_to(mark(device)), time.process_time() - cpu_before
    checked = check_same(target, wanted, what)
    return Stream(count, count * checked, wall_s, cpu_s, 1, checked)


def _copy(source: Tensors, target: Tensors) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor, non_blocking=True)


def _pinned_like(tensors: Tensors) -> Tensors:
    return {name: pinned(tensor) for name, tensor in tensors.items()}
