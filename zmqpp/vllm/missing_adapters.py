"""Adapters that a stage which came back could not load: who asks for one gets an error, all others go on.

Such as one whose folder has been removed since, or was on the machine that went with the stage.

Thread: vLLM's input thread checks, everything else is the engine's.
"""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from zmqpp.errors import UnsupportedError

__all__ = ["MissingAdapters"]

logger = init_logger("vllm.zmqpp.adapters")


class MissingAdapters:
    """By the number that vLLM gave each."""

    def __init__(self) -> None:
        self._why: dict[Any, str] = {}

    def note(self, adapter: Any, why: str) -> None:
        """A stage that came back is without it."""
        self._why[adapter] = why
        logger.warning(
            "adapter %s could not be loaded again, who asks for it gets an error: %s; unload it, and load it from "
            "where every stage can read it",
            *(adapter, why),
        )

    def found(self, adapter: Any) -> None:
        """Every stage has it, or none is to have it."""
        self._why.pop(adapter, None)

    def check(self, request: Any) -> None:
        """Raises UnsupportedError: vLLM's Request asks for one of them."""
        if (number := _adapter(request)) in self._why:
            raise UnsupportedError(f"adapter {number} could not be loaded again: {self._why[number]}")

    def of(self, requests: list[Any]) -> list[Any]:
        """Those of `requests` that ask for one of them; they would end the stage again and again."""
        return [request for request in requests if _adapter(request) in self._why]


def _adapter(request: Any) -> Any:
    return getattr(request.lora_request, "lora_int_id", None)
