"""Numbers as people write them: counts, bytes, and the sizes they type."""

from __future__ import annotations

import re

from zmqpp.errors import ConfigError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", re.IGNORECASE)
_POWERS = "KMGT"


def count(number: int | None) -> str:
    """3 938 000 -> `3.94M`."""
    if number is None:
        return "-"
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= scale:
            return f"{number / scale:.2f}{unit}"
    return str(number)


def size(number: int | None) -> str:
    """Bytes in decimal units: 7 878 888 -> `7.9 MB`."""
    if number is None:
        return "-"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"


def parse_size(text: str) -> int:
    """`5GB` -> 5 000 000 000; `1GiB` -> 1 073 741 824; a bare number is bytes.

    Raises:
        ConfigError: anything else, or zero.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"size {text!r} is not of the form 5GB, 500MB or 1GiB")
    unit = match[2].upper()
    base = 1024 if "I" in unit else 1000
    power = _POWERS.index(unit[0]) + 1 if unit and unit[0] in _POWERS else 0
    size_bytes = int(float(match[1]) * base**power)
    if size_bytes < 1:
        raise ConfigError(f"size {text!r} must be above 0")
    return size_bytes
