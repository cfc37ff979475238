"""Bytes of KV cache a token takes in each layer, from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zmqpp.checkpoint.config import text_config
from zmqpp.errors import ConfigError

# Bytes of one cached value. Source: vLLM's --kv-cache-dtype.
CACHE_BYTES = {
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8"), 1),
    **dict.fromkeys(("float16", "bfloat16", "half"), 2),
    **dict.fromkeys(("float32", "float"), 4),
}
_WITHOUT_CACHE = ("linear_attention", "mamba", "conv", "recurrent")
_WINDOWED = ("sliding_attention", "chunked_attention", "local_attention")


@dataclass(frozen=True)
class KvCache:
    """What attention keeps.

    Attributes:
        bytes_per_token: in one layer with attention.
        kinds: of each layer, as `layer_types` names them; empty when all are alike.
        window: tokens a windowed layer looks back; 0 = all.
        is_exact: False where the figures are an upper bound.
    """

    bytes_per_token: int
    kinds: tuple[str, ...] = ()
    window: int = 0
    is_exact: bool = True

    def layer_bytes(self, layer: int, context: int = 1) -> int:
        """Of one sequence of `context` tokens in `layer`."""
        kind = self.kinds[layer] if layer < len(self.kinds) else ""
        if kind.startswith(_WITHOUT_CACHE):
            return 0
        if kind in _WINDOWED and self.window:
            context = min(context, self.window)
        return context * self.bytes_per_token


def kv_cache(config: Mapping[str, Any], cache_dtype: str = "auto") -> KvCache | None:
    """What a config.json says about it; None when it does not say enough.

    Raises:
        ConfigError: an unknown `cache_dtype`.
    """
    text = text_config(dict(config))
    values = _values_per_token(text)
    if values is None:
        return None
    value_bytes = _value_bytes(text, cache_dtype)
    is_downcast = (
        cache_dtype == "auto" and value_bytes == 4
    )  # vLLM runs float32 models in 2 bytes if not told otherwise.
    kinds = text.get("layer_types")
    kinds = tuple(map(str, kinds)) if isinstance(kinds, list) else ()
    window = text.get("sliding_window")
    return KvCache(
        values * value_bytes,
        kinds,
        window if type(window) is int and text.get("use_sliding_window", True) else 0,
        is_exact=_is_exact(text, kinds) and not is_downcast,
    )


def _values_per_token(text: Mapping[str, Any]) -> int | None:
    """Keys and values of one token in one layer."""
    latent = text.get("kv_lora_rank")
    if type(latent) is int:  # Multi-head latent attention caches one compressed vector and the rotary part.
        return latent + int(text.get("qk_rope_head_dim") or 0)
    heads = _first(text, "num_attention_heads", "n_head", "num_heads", "n_heads")
    hidden = _first(text, "hidden_size", "n_embd", "d_model", "dim")
    head_dim = _first(text, "head_dim") or (hidden // heads if hidden and heads else None)
    kv_heads = _kv_heads(text) or heads
    return 2 * kv_heads * head_dim if kv_heads and head_dim else None


def _kv_heads(text: Mapping[str, Any]) -> int | None:
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1  # Falcon
    nested = text.get("attn_config")
    found = _first(text, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv")
    return found or (_first(nested, "kv_n_heads") if isinstance(nested, dict) else None)


def _first(text: Mapping[str, Any], *keys: str) -> int | None:
    return next((int(text[key]) for key in keys if type(text.get(key)) is int and text[key] > 0), None)


def _value_bytes(text: Mapping[str, Any], cache_dtype: str) -> int:
    if cache_dtype == "auto":
        return CACHE_BYTES.get(str(text.get("dtype") or text.get("torch_dtype")), 2)
    if cache_dtype not in CACHE_BYTES:
        raise ConfigError(
            f"--kv-cache-dtype {cache_dtype}: not known here; give auto or one of {', '.join(CACHE_BYTES)}"
        )
    return CACHE_BYTES[cache_dtype]


def _is_exact(text: Mapping[str, Any], kinds: tuple[str, ...]) -> bool:
    """Hybrid models that do not list their layers, and windows that vLLM may or may not honour, are bounded only."""
    if kinds:
        return set(kinds) == {"full_attention"}
    windowed = bool(text.get("sliding_window")) and text.get("use_sliding_window", True)
    return not windowed and not any(
        "mamba" in key or "ssm" in key or key == "attn_layer_period" for key in text
    )
