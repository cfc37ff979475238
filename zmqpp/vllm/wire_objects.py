"""Objects of vLLM's plain-data classes, made of their fields; which classes those are, codec.py says."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import msgspec

from zmqpp._shown import one_line, shown
from zmqpp.errors import MalformedError
from zmqpp.vllm.wire_fields import MISSING, Factory, fields_of

__all__ = ["build", "build_fraction", "build_mapping", "build_named_tuple", "build_slice"]


def build_named_tuple(kind: Any, content: list[Any]) -> Any:
    if len(content) != len(kind._fields):
        raise MalformedError(
            f"payload holds a {kind.__name__} of {len(content)} fields, not {len(kind._fields)}"
        )
    return tuple.__new__(kind, content)


def build_mapping(kind: Any, content: list[Any]) -> Any:
    """A `UserDict` of texts to anything: what vLLM holds an image in."""
    (held,) = content
    if type(held) is not dict or not all(type(key) is str for key in held):
        raise MalformedError(f"payload holds a {kind.__name__} that is no mapping of names")
    value = kind.__new__(kind)
    value.data = held
    return value


def build_slice(content: list[Any]) -> slice:
    if len(content) != 3 or not all(part is None or type(part) is int for part in content):
        raise MalformedError(f"payload holds a slice of {shown(content)}")
    return slice(*content)


def build_fraction(content: list[Any]) -> Fraction:
    if len(content) != 2 or not all(type(part) is int for part in content) or content[1] < 1:
        raise MalformedError(f"payload holds a fraction of {shown(content)}")
    return Fraction(*content)


def build(kind: type, given: dict[str, Any]) -> Any:
    """An object of `kind`; without running its constructor, but for the classes that msgspec alone makes."""
    known = _known_fields(kind)
    if not known.keys() >= given.keys():
        unknown = one_line(", ".join(sorted(given.keys() - known.keys())))
        raise MalformedError(
            f"payload holds a {kind.__name__} with fields this vLLM does not know "
            f"({unknown}); give all stages the same vLLM version"
        )
    fields = {
        field: given[field] if field in given else _default_of(kind, field, default)
        for field, default in known.items()
    }
    if _has_dict(kind):
        value = kind.__new__(kind)
        value.__dict__.update(fields)
        return value
    if issubclass(kind, msgspec.Struct) and not _can_be_made_empty(kind):
        return _construct(kind, fields)
    put = msgspec.structs.force_setattr if issubclass(kind, msgspec.Struct) else object.__setattr__
    value = kind.__new__(kind)
    for field, content in fields.items():
        put(value, field, content)
    return value


@functools.cache
def _known_fields(kind: type) -> dict[str, Any]:
    return dict(fields_of(kind))


@functools.cache
def _has_dict(kind: type) -> bool:
    """A dataclass whose fields are all kept in `__dict__`: no slots, no properties in their place."""
    if issubclass(kind, msgspec.Struct) or not getattr(kind, "__dictoffset__", 0):
        return False
    return not any(hasattr(getattr(kind, field, None), "__set__") for field in _known_fields(kind))


@functools.cache
def _can_be_made_empty(kind: Any) -> bool:
    """Classes made by msgspec alone cannot, without their constructor."""
    try:
        kind.__new__(kind)
    except TypeError:
        return False
    return True


def _construct(kind: type, fields: dict[str, Any]) -> Any:
    """By its constructor; vLLM's `__post_init__` of such classes looks at values, and does nothing else."""
    try:
        return kind(**fields)
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise MalformedError(f"payload holds no {kind.__name__}: {one_line(str(error))}") from None


def _default_of(kind: type, field: str, default: Any) -> Any:
    if isinstance(default, Factory):
        return default.make()
    if default is MISSING:
        raise MalformedError(f"payload holds a {kind.__name__} without its field {field}")
    return default
