"""What vLLM's classes that travel look like here: equal digests, and every object arrives as it was sent.

Fields equal to their default are left out on the way, so defaults count as much as names do. Two patch releases of one
minor version mostly agree; where they do not, a step would be refused over and over, or understood otherwise.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
from collections import UserDict
from collections.abc import Iterator
from typing import Any

from zmqpp.vllm import compat
from zmqpp.vllm.wire_fields import MISSING, Factory, fields_of

__all__ = ["described", "wire_digest"]

_PLAIN = (bool, int, float, str, bytes, type(None))


@functools.cache
def wire_digest() -> str:
    """Of all classes that may travel."""
    lines = sorted(
        line for module in (*compat.WIRE_MODULES, *compat.WIRE_CLASSES) for line in _classes(module)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _classes(module: str) -> Iterator[str]:
    for kind in vars(importlib.import_module(module)).values():
        # What a module only imports is of its own module, or does not travel.
        if isinstance(kind, type) and kind.__module__ == module and (name := compat.wire_name(kind)):
            yield f"{name} {described(kind)}"


def described(kind: Any) -> str:
    """What is written of objects of this class, and what is left out."""
    if issubclass(kind, enum.Enum):
        return " ".join(sorted(_shown(member.value) for member in kind))
    if issubclass(kind, tuple):
        return " ".join(kind._fields)
    if issubclass(kind, UserDict):
        return "mapping"
    return " ".join(sorted(f"{field}={_shown(default)}" for field, default in fields_of(kind)))


def _shown(value: Any) -> str:
    """The same in every process: the text of an object may hold its address."""
    if value is MISSING:
        return ""
    if isinstance(value, Factory):
        return f"{getattr(value.make, '__qualname__', type(value.make).__qualname__)}()"
    if isinstance(value, enum.Enum):
        return str(value)
    return repr(value) if type(value) in _PLAIN else type(value).__qualname__
