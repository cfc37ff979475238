"""What a class that travels is made of: its fields, with their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["MISSING", "Factory", "fields_of"]

MISSING = object()
"""In place of a default that there is none of."""


@dataclasses.dataclass(frozen=True)
class Factory:
    """A default that is made anew for each object: an empty list, set or dict."""

    make: Callable[[], Any]


_known: dict[type, list[tuple[str, Any]]] = {}


def fields_of(kind: type) -> list[tuple[str, Any]]:
    """(field, default) of a dataclass or Struct; `MISSING` where there is none, `Factory` where it is made."""
    found = _known.get(kind)
    if found is None:
        found = _known[kind] = _find(kind)
    return found


def _find(kind: type) -> list[tuple[str, Any]]:
    if issubclass(kind, msgspec.Struct):
        return [(f.name, _default(f, msgspec.NODEFAULT)) for f in msgspec.structs.fields(kind)]
    return [(f.name, _default(f, dataclasses.MISSING)) for f in dataclasses.fields(kind)]


def _default(field: Any, absent: Any) -> Any:
    if field.default is not absent:
        return field.default
    if field.default_factory is not absent:
        return Factory(field.default_factory)
    return MISSING
