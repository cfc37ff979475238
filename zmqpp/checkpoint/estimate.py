"""What each stage will hold and compute, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.config import text_config
from zmqpp.checkpoint.header import TensorEntry
from zmqpp.checkpoint.kv_cache import KvCache, kv_cache
from zmqpp.checkpoint.names import Role
from zmqpp.checkpoint.share import stage_tensors
from zmqpp.layers import LayerRange

LOPSIDED = 1.3
"""A stage is too large when it has this many times the mean."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_PACKED = (".qweight", ".weight_packed")


@dataclass(frozen=True)
class Load:
    """How the pipeline will be used, as far as memory depends on it.

    Attributes:
        context: tokens of the longest sequence; 0 = not given.
        sequences: at once.
        cache_dtype: of the KV cache, as vLLM's --kv-cache-dtype.
    """

    context: int = 0
    sequences: int = 1
    cache_dtype: str = "auto"


@dataclass(frozen=True)
class StageEstimate:
    """One stage.

    Attributes:
        parameters: elements of its tensors, as stored.
        weight_bytes: of its tensors.
        kv_bytes_per_token: in all its layers; None when config.json does not say enough.
        kv_bytes: for the whole load; None without a context too.
        active_parameters: those one token is multiplied with.
    """

    stage: int
    layers: LayerRange
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int | None
    kv_bytes: int | None
    active_parameters: int

    @property
    def memory_bytes(self) -> int:
        """Weights and, where it is known, KV cache."""
        return self.weight_bytes + (self.kv_bytes or 0)


def estimate(checkpoint: Checkpoint, ranges: Sequence[LayerRange], load: Load) -> list[StageEstimate]:
    """Every stage of a valid split."""
    cache = kv_cache(checkpoint.config, load.cache_dtype)
    stages = []
    for stage, layers in enumerate(ranges):
        tensors = stage_tensors(checkpoint, ranges, stage)
        is_last = stage == len(ranges) - 1
        stages.append(
            StageEstimate(
                stage,
                layers,
                parameters=sum(tensor.elements for tensor in tensors),
                weight_bytes=sum(tensor.size_bytes for tensor in tensors),
                kv_bytes_per_token=_kv(cache, layers, 1, 1),
                kv_bytes=_kv(cache, layers, load.context, load.sequences) if load.context else None,
                active_parameters=round(active_parameters(checkpoint, tensors, is_last)),
            )
        )
    return stages


def _kv(cache: KvCache | None, layers: LayerRange, context: int, sequences: int) -> int | None:
    if cache is None:
        return None
    return sequences * sum(cache.layer_bytes(layer, context) for layer in range(layers.start, layers.end))


def active_parameters(checkpoint: Checkpoint, tensors: Iterable[TensorEntry], is_last: bool) -> float:
    """Parameters of `tensors` one token is multiplied with; `is_last`: on the stage that computes logits."""
    share = _expert_share(checkpoint.config)
    unpack = _values_per_element(checkpoint.config)
    total = 0.0
    for tensor in tensors:
        values = tensor.elements * (unpack if tensor.name.endswith(_PACKED) else 1)
        layer = checkpoint.layers.get(tensor.name)
        if layer is None:
            total += values * _is_multiplied(checkpoint, checkpoint.roles[tensor.name], is_last)
        elif layer < checkpoint.total_layers:
            total += values * (share if ".experts." in tensor.name else 1.0)
    return total


def _is_multiplied(checkpoint: Checkpoint, role: Role, is_last: bool) -> bool:
    """A look-up of embeddings costs nothing; the head, or the embeddings in its place, is a product."""
    if role is Role.EMBEDDING:
        return is_last and checkpoint.tied
    return is_last and role is Role.HEAD and not checkpoint.tied


def _expert_share(config: Mapping[str, Any]) -> float:
    """Of a layer's experts, the part that one token goes through."""
    text = text_config(dict(config))
    experts = next((text[key] for key in _EXPERTS if type(text.get(key)) is int), 0)
    chosen = next((text[key] for key in _EXPERTS_PER_TOKEN if type(text.get(key)) is int), 0)
    return min(1.0, chosen / experts) if experts > 0 and chosen > 0 else 1.0


def _values_per_element(config: Mapping[str, Any]) -> int:
    """Of packed integers: 8 weights of 4 bits in an int32."""
    quantization = config.get("quantization_config")
    bits = quantization.get("bits", 4) if isinstance(quantization, dict) else 4
    return 32 // bits if type(bits) is int and 0 < bits <= 32 else 1


def lopsided(values: Sequence[int]) -> tuple[int, float] | None:
    """The largest stage and how many times the mean it has, when that is more than LOPSIDED."""
    mean = sum(values) / len(values)
    largest = max(range(len(values)), key=values.__getitem__)
    return (largest, values[largest] / mean) if mean and values[largest] > LOPSIDED * mean else None
