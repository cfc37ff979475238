"""Tensors that all ranks of a tensor-parallel group hold: each rank carries a slice, the receivers gather them.

Source: contract of vLLM GroupCoordinator.send_tensor_dict and recv_tensor_dict (distributed/parallel_state.py).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from zmqpp.errors import ConfigError, TensorMismatchError

__all__ = ["AllGatherGroup", "TensorDict", "cut", "gather", "take_shapes", "whole"]

TensorDict = dict[str, Any]

_SLICES = "\0slices"
"""Reserved key: full shapes of the tensors of which only this rank's slice travels."""


class AllGatherGroup(Protocol):
    """What is needed of the tensor-parallel group whose ranks each carry a slice."""

    world_size: int
    rank_in_group: int

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor: ...


def cut(values: TensorDict, group: AllGatherGroup | None, overrides: dict[str, bool] | None) -> TensorDict:
    """`values` with this rank's part of each tensor that is to be gathered, and the shapes they came from."""
    if type(values) is dict and _SLICES in values:
        raise ConfigError(f"the key {_SLICES!r} is reserved")
    if type(values) is not dict or group is None or group.world_size == 1:
        return values
    out, shapes = dict(values), {}
    for key, value in values.items():
        if isinstance(value, torch.Tensor) and _is_sliced(key, value.numel(), group, overrides):
            shapes[key] = list(value.shape)
            out[key] = value.reshape(group.world_size, -1)[group.rank_in_group]
    if shapes:
        out[_SLICES] = shapes
    return out


def take_shapes(values: TensorDict) -> Any:
    """What the tensors were cut from, out of a received dict; whoever sent it may have put anything there."""
    return values.pop(_SLICES, {})


def whole(values: TensorDict, group: AllGatherGroup | None, overrides: dict[str, bool] | None) -> TensorDict:
    """A received dict with its tensors gathered."""
    if group is not None or _SLICES in values:
        gather(values, take_shapes(values), group, overrides)
    return values


def gather(
    values: TensorDict, shapes: Any, group: AllGatherGroup | None, overrides: dict[str, bool] | None
) -> None:
    """Replace every slice by the whole tensor, in place; `shapes` are what they were cut from."""
    if not isinstance(shapes, dict):
        raise TensorMismatchError("receive: malformed shapes of sliced tensors")
    expected = _expected_slices(values, shapes, group, overrides)
    if expected != set(shapes):
        raise TensorMismatchError(
            f"receive: the sender sliced {sorted(shapes, key=str)}, this rank expects {sorted(expected)}; "
            "give both sides the same all_gather_group size and all_gather_tensors"
        )
    for key, shape in shapes.items():
        part = values[key]
        if group is None or not isinstance(part, torch.Tensor):
            raise TensorMismatchError(f"receive: {key!r} was sliced, but is no tensor")
        values[key] = group.all_gather(part, dim=0).reshape(shape)


def _expected_slices(
    values: TensorDict, shapes: TensorDict, group: AllGatherGroup | None, overrides: dict[str, bool] | None
) -> set[str]:
    if group is None or group.world_size == 1:
        return set()
    expected = set()
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            numel = value.numel() * group.world_size if key in shapes else value.numel()
            if _is_sliced(key, numel, group, overrides):
                expected.add(key)
    return expected


# Source: GroupCoordinator._should_use_all_gather; empty tensors are never sliced.
def _is_sliced(key: str, numel: int, group: AllGatherGroup, overrides: dict[str, bool] | None) -> bool:
    divides = numel > 0 and numel % group.world_size == 0
    return divides and (overrides or {}).get(key, divides)
