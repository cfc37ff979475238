"""Ranges whose largest stage is as small as it can be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.estimate import Load, active_parameters
from zmqpp.checkpoint.kv_cache import kv_cache
from zmqpp.checkpoint.share import stage_tensors
from zmqpp.errors import LayerRangeError
from zmqpp.layers import LayerRange, even_ranges

MEASURES = ("memory", "compute")

Cost = Callable[[int, int, int], float]
"""(stage, start, end) -> what the stage would cost with layers start .. end - 1."""


def balanced_ranges(
    checkpoint: Checkpoint, stages: int, by: str, load: Load | None = None
) -> list[LayerRange]:
    """The split that minimises the largest stage; of several such, the one with the most even stages.

    Args:
        checkpoint: the model.
        stages: at least 1, at most one a layer.
        by: "memory" (weights, and KV cache under `load`) or "compute" (parameters touched per token).
        load: how the pipeline will be used.
    Raises:
        LayerRangeError: more stages than layers.
    """
    if stages > checkpoint.total_layers:
        raise LayerRangeError(
            f"{stages} stages cannot share {checkpoint.total_layers} layers: every stage needs at least one; "
            f"use at most {checkpoint.total_layers} stages"
        )
    return partition(checkpoint.total_layers, stages, _costs(checkpoint, stages, by, load or Load()))


def _costs(checkpoint: Checkpoint, stages: int, by: str, load: Load) -> Cost:
    """Costs of layers by prefix sums, and of what every stage has beside its layers."""
    per_layer = [0.0] * checkpoint.total_layers
    for name, layer in checkpoint.layers.items():
        if layer < checkpoint.total_layers:
            tensor = checkpoint.tensors[name]
            per_layer[layer] += (
                tensor.size_bytes if by == "memory" else active_parameters(checkpoint, [tensor], False)
            )
    cache = kv_cache(checkpoint.config, load.cache_dtype) if by == "memory" and load.context else None
    if cache is not None:
        for layer in range(checkpoint.total_layers):
            per_layer[layer] += cache.layer_bytes(layer, load.context) * load.sequences
    before = [0.0, *accumulate(per_layer)]
    beside = [_beside(checkpoint, stages, stage, by) for stage in range(stages)]
    return lambda stage, start, end: beside[stage] + before[end] - before[start]


def _beside(checkpoint: Checkpoint, stages: int, stage: int, by: str) -> float:
    """What a stage has whichever layers it gets."""
    ranges = even_ranges(checkpoint.total_layers, stages)
    tensors = [
        tensor
        for tensor in stage_tensors(checkpoint, ranges, stage)
        if checkpoint.layers.get(tensor.name, checkpoint.total_layers) >= checkpoint.total_layers
    ]
    if by == "memory":
        return sum(tensor.size_bytes for tensor in tensors)
    return active_parameters(checkpoint, tensors, stage == stages - 1)


def partition(total_layers: int, stages: int, cost: Cost) -> list[LayerRange]:
    """The best contiguous split of `total_layers` into `stages` non-empty ranges, by exact search.

    Two passes: the smallest possible largest stage, then under that limit the least sum of squares.
    """
    largest = _search(total_layers, stages, cost, max, lambda value: value)[0]
    limit = largest * (1 + 1e-12)  # Sums of floats differ in their last bits.

    def square(value: float) -> float:
        return value * value if value <= limit else float("inf")

    return _search(total_layers, stages, cost, lambda a, b: a + b, square)[1]


def _search(
    total_layers: int,
    stages: int,
    cost: Cost,
    join: Callable[[float, float], float],
    weigh: Callable[[float], float],
) -> tuple[float, list[LayerRange]]:
    """Best over all splits of join(weigh(cost), ..), by dynamic programming over (stages, layers) so far."""
    best: dict[int, tuple[float, list[LayerRange]]] = {0: (0.0, [])}
    for stage in range(stages):
        left = stages - stage - 1
        reached: dict[int, tuple[float, list[LayerRange]]] = {}
        for end in range(stage + 1, total_layers - left + 1):
            reached[end] = min(
                (join(value, weigh(cost(stage, start, end))), [*ranges, LayerRange(start, end)])
                for start, (value, ranges) in best.items()
                if start < end
            )
        best = reached
    return best[total_layers]
