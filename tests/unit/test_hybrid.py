"""What a stage of a hybrid model does that has not all of its kinds of layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, UniformTypeKVCacheSpecs

from zmqpp.vllm.hybrid import copy_states_only_where_they_are

pytestmark = pytest.mark.vllm

ATTENTION = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32)
STATE = MambaSpec(block_size=16, shapes=((2, 4),), dtypes=(torch.float32,))


def _group(layers: list[str], spec: Any) -> Any:
    return SimpleNamespace(layer_names=layers, kv_cache_spec=spec)


@pytest.mark.parametrize(
    ("groups", "mode"),
    [
        ([_group(["a"], ATTENTION), _group(["b"], STATE)], "align"),
        ([_group(["a"], ATTENTION), _group([], STATE)], "none"),
        ([_group(["b"], UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"b": STATE}))], "align"),
        ([_group(["a"], UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"a": ATTENTION}))], "none"),
    ],
)
def test_states_are_copied_where_there_are_some(groups: list[Any], mode: str) -> None:
    config = SimpleNamespace(mamba_cache_mode="align")
    copy_states_only_where_they_are(config, SimpleNamespace(kv_cache_groups=groups))
    assert config.mamba_cache_mode == mode


def test_another_mode_stays() -> None:
    for mode in ("none", "all"):
        config = SimpleNamespace(mamba_cache_mode=mode)
        copy_states_only_where_they_are(config, SimpleNamespace(kv_cache_groups=[_group(["a"], ATTENTION)]))
        assert config.mamba_cache_mode == mode
