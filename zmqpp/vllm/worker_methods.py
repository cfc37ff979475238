"""Which methods of vLLM's worker another stage may call by name.

vLLM's engine asks for these, and for what a `--worker-extension-cls` of this stage's own command line adds. The worker
has others, which set the process's environment, write files anywhere or open connections: nobody needs them from afar.
Source: vllm/v1/executor/abstract.py and vllm/v1/engine, all calls of `collective_rpc`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["may_be_called"]

_BRING_UP = (
    *(
        "get_kv_cache_spec",
        "get_supported_kv_cache_layouts",
        "set_kv_cache_layout",
        "determine_available_memory",
    ),
    *("update_max_model_len", "initialize_from_config", "compile_or_warm_up_model", "get_supported_tasks"),
    *("get_kv_connector_handshake_metadata", "get_cache_block_size_bytes", "supports_draft_weight_updates"),
)
_SERVING = (
    *("add_lora", "remove_lora", "pin_lora", "list_loras", "reset_mm_cache", "reset_encoder_cache"),
    *(
        "sleep",
        "wake_up",
        "discard",
        "check_health",
        "profile",
        "execute_dummy_batch",
        "take_draft_token_ids",
    ),
    *("synchronize_device", "compute_weight_checksums", "get_model_inspection", "shutdown"),
    *("get_compilation_match_table", "get_encoder_timing_stats", "release_late_interaction_query_cache"),
)
_KNOWN = frozenset(_BRING_UP + _SERVING)


def may_be_called(method: str, extension: Any) -> bool:
    """Whether a message may name `method`; `extension` is the class that the operator added to the worker, or None."""
    if method in _KNOWN:
        return True
    return extension is not None and not method.startswith("_") and callable(getattr(extension, method, None))
