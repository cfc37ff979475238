"""Errors of vLLM in a line for a person."""

from __future__ import annotations

from zmqpp.errors import ZmqppError

__all__ = ["PLAIN_ERRORS", "describe"]

PLAIN_ERRORS = (ValueError, NotImplementedError, ZmqppError)
"""Errors whose text says what to change; others need their traceback."""


def describe(error: BaseException) -> str:
    """What an error of vLLM or pydantic says, on one line."""
    errors = getattr(error, "errors", None)
    text = "; ".join(str(e.get("msg", e)) for e in errors()) if callable(errors) else str(error)
    text = " ".join(text.split())
    return text if text and isinstance(error, PLAIN_ERRORS) else f"{type(error).__name__}: {text}"
