"""How what came from elsewhere appears in an error's text: on one line, short, and without control characters."""

from __future__ import annotations

from typing import Any

__all__ = ["one_line", "shown"]

_MOST = 80


def shown(value: Any) -> str:
    """A foreign value."""
    return one_line(repr(value), _MOST)


def one_line(text: object, most: int = 200) -> str:
    """A text, or an error's, in which there may be foreign words."""
    start = str(text)[: most + 1]
    clean = "".join(letter if letter.isprintable() else " " for letter in start)
    return clean if len(clean) <= most else f"{clean[:most]}..."
