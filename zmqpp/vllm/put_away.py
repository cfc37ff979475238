"""What of a worker's memory is put away, so that a call which comes twice is carried out once.

Thread: the worker's. Source: Executor.sleep, wake_up, discard (vllm/v1/executor/abstract.py), which keep the same of
all workers together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["PUT_AWAY_CALLS", "PutAway"]

PUT_AWAY_CALLS = frozenset(("sleep", "wake_up", "discard"))
_ALL = frozenset(("weights", "kv_cache"))
"""What `sleep` puts away; the others may be told of one of them."""
_FIRST = 1
"""The level at which weights are kept in the host's memory; above, they are thrown away."""


class PutAway:
    """Of one worker, or as it would be after some calls."""

    def __init__(self) -> None:
        self.tags: frozenset[str] = frozenset()
        self.is_lost = False
        """Weights were thrown away once: those that are there now, if any, were written by an engine."""

    def changes(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the call, if it is one of PUT_AWAY_CALLS, does anything."""
        if method == "sleep":
            return "weights" not in self.tags
        if method == "wake_up":
            return bool(self.tags & _tags(args, kwargs))
        return method != "discard" or not _tags(args, kwargs) <= self.tags

    def note(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A call was carried out."""
        if method == "sleep":
            self.tags = _ALL
            self.is_lost = _level(args, kwargs) > _FIRST
        elif method == "discard":
            self.tags |= _tags(args, kwargs)
            self.is_lost |= "weights" in _tags(args, kwargs)
        elif method == "wake_up":
            self.tags -= _tags(args, kwargs)


def _level(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    level = args[0] if args else kwargs.get("level", _FIRST)
    return level if type(level) is int else _FIRST


def _tags(args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[str]:
    given = args[0] if args else kwargs.get("tags")
    if not isinstance(given, Iterable):
        return _ALL
    return frozenset([given] if isinstance(given, str) else map(str, given)) or _ALL
