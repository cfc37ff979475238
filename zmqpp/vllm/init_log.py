"""The calls that brought the stages to where they are, in order; a stage that comes back is brought up by them."""

from __future__ import annotations

from typing import Any

from zmqpp.vllm.put_away import PUT_AWAY_CALLS, PutAway

__all__ = ["ADAPTER_CALLS", "LASTING_CALLS", "REPEATED_CALLS", "Call", "adapter_of", "with_lasting_call"]

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Method, arguments, keyword arguments."""

ADAPTER_CALLS = frozenset(("add_lora", "remove_lora", "pin_lora"))
LASTING_CALLS = ADAPTER_CALLS | PUT_AWAY_CALLS
"""Calls while serving that last: a stage which comes back must hear them too."""
REPEATED_CALLS = LASTING_CALLS | {
    *("list_loras", "reset_mm_cache", "reset_encoder_cache", "synchronize_device", "check_health"),
    *("compute_weight_checksums", "get_model_inspection", "get_supported_tasks"),
}
"""A stage may hear these twice: they are sent again when another one was lost before all had answered."""


def with_lasting_call(log: list[Call], call: Call, adapters: int) -> list[Call]:
    """The log as it is after `call`, one of LASTING_CALLS, was answered; what it undoes leaves no trace.

    Args:
        adapters: how many a stage keeps; those that were loaded before them it has let go.
    """
    if call[0] in PUT_AWAY_CALLS:
        return _with_put_away_call(log, call)
    if call[0] == "pin_lora":
        return [*log, call]
    adapter = adapter_of(call)
    pins = [earlier for earlier in log if _is_of(earlier, adapter) and earlier[0] == "pin_lora"]
    rest = [earlier for earlier in log if not _is_of(earlier, adapter)]
    return rest if call[0] == "remove_lora" else _without_oldest([*rest, call, *pins], adapters)


def _without_oldest(log: list[Call], adapters: int) -> list[Call]:
    pinned = [adapter_of(call) for call in log if call[0] == "pin_lora"]
    loaded = [adapter_of(call) for call in log if call[0] == "add_lora"]
    free = [adapter for adapter in loaded if adapter not in pinned]
    gone = free[: max(0, len(loaded) - adapters)]
    return [call for call in log if not any(_is_of(call, adapter) for adapter in gone)]


def _with_put_away_call(log: list[Call], call: Call) -> list[Call]:
    rest = [earlier for earlier in log if earlier[0] not in PUT_AWAY_CALLS]
    if call[0] == "sleep":
        return [*rest, call]
    put_away = PutAway()
    for earlier in (*log, call):
        put_away.note(*earlier)
    return [*log, call] if put_away.tags else rest


def _is_of(call: Call, adapter: Any) -> bool:
    return call[0] in ADAPTER_CALLS and adapter_of(call) == adapter


def adapter_of(call: Call) -> Any:
    """The number of the adapter that one of ADAPTER_CALLS is about: of its LoRARequest, or as it is."""
    _, args, kwargs = call
    first = args[0] if args else next(iter(kwargs.values()), None)
    return getattr(first, "lora_int_id", first)
