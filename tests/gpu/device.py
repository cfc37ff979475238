"""The device these tests run on, and what may lie on it.

ZMQPP_GPU_TEST_DEVICE=cpu runs those that need no stream of their own over CPU tensors: to try the tests, not the lanes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.fault.peer import until
from zmqpp import _engine, config
from zmqpp.bench.compute import Compute
from zmqpp.bench.device import bytes_in_use, let_go
from zmqpp.bench.payload import Payload, rehearse
from zmqpp.bench.targets import SMALL

DEVICE = torch.device(os.environ.get("ZMQPP_GPU_TEST_DEVICE", "cuda:0"))
LANES = ("tcp", "shm", *(("cuda_ipc",) if "cuda_ipc" in config.LANES and DEVICE.type == "cuda" else ()))
"""Those that this build has for tensors of a GPU."""
GIVEN_BACK_S = 30.0
SLACK_BYTES = 64 << 20
"""What CUDA may keep for itself in a context: kernels it loads late, memory for their locals."""


def require(cpu_will_do: bool = True) -> None:
    """Skip a whole module where there is no GPU; in one line, so that `make test` counts it once.

    Args:
        cpu_will_do: the module makes sense over CPU tensors, where that was asked for.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("these need a GPU for themselves: `make test-gpu`", allow_module_level=True)
    if DEVICE.type == "cpu":
        if not cpu_will_do:
            pytest.skip("ZMQPP_GPU_TEST_DEVICE=cpu: these need a GPU", allow_module_level=True)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device here; `make test-gpu` where there is one", allow_module_level=True)


def warm_up() -> None:
    """Whatever CUDA opens for good, before a test looks around: context, kernels, pinned memory."""
    if DEVICE.type == "cuda":
        found = _engine.describe_cuda()
        assert found["works"], f"the engine does not reach CUDA, tensors would go through .cpu(): {found}"
        torch.cuda.set_device(DEVICE)
        Compute(DEVICE).product_s()
        rehearse(Payload(SMALL, DEVICE))
        torch.empty(64, pin_memory=True).copy_(torch.ones(64, device=DEVICE))
        assert_works()


def assert_works() -> None:
    """The device still computes, and right."""
    square = torch.full((256, 256), 2.0, device=DEVICE)
    assert bool(((square @ square) == 1024).all())


@contextmanager
def memory_comes_back() -> Iterator[None]:
    """What was taken of the device's memory meanwhile, by any process, is given back soon; torch's own to the byte."""
    allocated = _allocated()
    before = _in_use()
    yield
    assert _allocated() == allocated
    until(lambda: _in_use() <= before + SLACK_BYTES, within_s=GIVEN_BACK_S)


def _in_use() -> int:
    let_go(DEVICE)
    return bytes_in_use(DEVICE)


def _allocated() -> int:
    if DEVICE.type != "cuda":
        return 0
    gc.collect()  # an error's traceback keeps the tensors of its frames
    torch._C._cuda_clearCublasWorkspaces()  # kept for each stream that ever multiplied
    return torch.cuda.memory_allocated(DEVICE)


def moved(value: Any, device: torch.device = DEVICE) -> Any:
    """The same with its tensors on the device: with their strides and offsets, as views of whatever they view."""
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(moved(value.data, device), value.requires_grad)
    if isinstance(value, torch.Tensor):
        return _moved_tensor(value, device)
    if isinstance(value, dict):
        return {key: moved(inner, device) for key, inner in value.items()}
    return [moved(inner, device) for inner in value] if isinstance(value, list) else value


def _moved_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.is_conj():
        return _moved_tensor(tensor.conj(), device).conj()
    if tensor.is_neg():
        return torch._neg_view(_moved_tensor(torch._neg_view(tensor), device))
    memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    there = torch.empty(0, dtype=tensor.dtype, device=device)
    return there.set_(
        memory.to(device, copy=True).untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def brought(value: Any, wherever: bool = False) -> Any:
    """The same in CPU memory; every tensor of it must have been on the device, or `wherever`."""
    if isinstance(value, torch.Tensor):
        assert wherever or value.device == DEVICE, f"a tensor came to {value.device}"
        return value.cpu()
    if isinstance(value, dict):
        return {key: brought(inner, wherever) for key, inner in value.items()}
    return [brought(inner, wherever) for inner in value] if isinstance(value, list) else value
