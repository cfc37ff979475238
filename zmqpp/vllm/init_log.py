"""The calls that brought the stages to where they are, in order; a stage that comes back is brought up by them."""

from __future__ import annotations

from typing import Any

__all__ = ["ADAPTER_CALLS", "Call", "with_adapter_call"]

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Method, arguments, keyword arguments."""

ADAPTER_CALLS = frozenset(("add_lora", "remove_lora", "pin_lora"))
"""Calls while serving that last: a stage which comes back must hear them too."""


def with_adapter_call(log: list[Call], call: Call) -> list[Call]:
    """The log as it is after `call`: an adapter that was removed leaves no trace, so that it stays short."""
    adapter = _adapter(call)
    if call[0] != "remove_lora":
        return [*log, call]
    return [earlier for earlier in log if earlier[0] not in ADAPTER_CALLS or _adapter(earlier) != adapter]


def _adapter(call: Call) -> Any:
    """Its number: of a LoRARequest, or as it is."""
    _, args, kwargs = call
    first = args[0] if args else next(iter(kwargs.values()), None)
    return getattr(first, "lora_int_id", first)
