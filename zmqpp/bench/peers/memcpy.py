"""What is the ceiling: how fast does one thread copy the dict into warm memory?"""

from __future__ import annotations

import time

import torch

from zmqpp.bench.payload import Payload, Tensors, check_same
from zmqpp.bench.turn import Stream


def copy_stream(pair: tuple[Payload, Payload], count: int, far_device: torch.device) -> Stream:
    """`count` copies of the dict by torch's copy_."""
    source, target = pair[0].tensors, pair[1].tensors
    _copy(source, target)
    cpu_before, started = time.process_time(), time.perf_counter()
    for _ in range(count):
        _copy(source, target)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    size = pair[0].size
    checked = check_same(target, source, f"memcpy of {size.label}")
    pair[1].copied_from(pair[0])
    return Stream(count, count * size.dict_bytes, wall_s, cpu_s, 1, checked)


def _copy(source: Tensors, target: Tensors) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
