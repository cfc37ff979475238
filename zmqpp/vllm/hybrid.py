"""Hybrid models: layers with a state (Mamba, convolutions) beside layers with attention.

vLLM takes it that every worker has both. Here a stage may have attention alone. One with states alone is refused: vLLM
finds the block size of states by the attention beside them.

Thread: any, before the first step. Source: get_mamba_groups (vllm/v1/worker/mamba_utils.py),
_project_kv_cache_groups_to_worker (vllm/v1/core/kv_cache_utils.py).
"""

from __future__ import annotations

from typing import Any

from vllm.v1.kv_cache_interface import MambaSpec, UniformTypeKVCacheSpecs

__all__ = ["copy_states_only_where_they_are"]


def copy_states_only_where_they_are(cache_config: Any, kv_cache_config: Any) -> None:
    """Where prefixes of a hybrid are cached vLLM copies states before each step, and fails where there are none."""
    if getattr(cache_config, "mamba_cache_mode", None) != "align":
        return
    if not any(
        group.layer_names and _has_state(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups
    ):
        cache_config.mamba_cache_mode = "none"


def _has_state(spec: Any) -> bool:
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return any(_has_state(one) for one in spec.kv_cache_specs.values())
    return isinstance(spec, MambaSpec)
