"""Whether the fields of an object that was rebuilt without its constructor hold what its class says they do."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any

__all__ = ["wrong_field"]

_Test = Callable[[Any], bool]


def wrong_field(value: Any) -> str | None:
    """The name of the first field of `value` that is of another type than declared; None where all are right.

    A float may be an int; what a declaration says in words of its own is not looked into.
    """
    for name, test in _tests_of(type(value)):
        if not test(getattr(value, name)):
            return name
    return None


@functools.cache
def _tests_of(kind: type) -> list[tuple[str, _Test]]:
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError):
        return []  # declared by names that exist for type checkers only
    hints = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}
    return [(name, _test_of(hint)) for name, hint in hints.items()]


def _test_of(hint: Any) -> _Test:
    if hint is typing.Any:
        return lambda value: True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _test_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        tests = [_test_of(each) for each in inner]
        return lambda value: any(test(value) for test in tests)
    if origin is typing.Literal:
        return lambda value: value in inner
    if origin in (list, set):
        return _items(origin, _test_of(inner[0]), inner[0])
    if origin is dict:
        key, item = map(_test_of, inner)
        return lambda value: type(value) is dict and all(key(k) and item(v) for k, v in value.items())
    if hint is float:
        return lambda value: type(value) in (float, int)
    if hint in (int, str, bool, bytes):
        return lambda value: type(value) is hint
    if hint in (type(None), None):
        return lambda value: value is None
    if isinstance(hint, type) and hint is not object and origin is None:
        return lambda value: isinstance(value, hint) and wrong_field(value) is None
    return lambda value: True


def _items(kind: type, test: _Test, hint: Any) -> _Test:
    if hint in (int, str):  # long lists of tokens: one look in C
        return lambda value: type(value) is kind and set(map(type, value)) <= {hint}
    return lambda value: type(value) is kind and all(map(test, value))
