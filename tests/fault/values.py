"""Dicts whose every byte is known, and what it takes to say that one arrived whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_PATTERN = np.arange(251, dtype=np.uint8)
"""Its length is prime: no two pieces of a payload are alike at distances that chunks and rings have."""


def numbered(i: int, size: int) -> dict[str, Any]:
    """Dict number `i`, with a tensor of `size` bytes."""
    return {"i": i, "x": torch.from_numpy(_bytes_of(i, size))}


def assert_whole(got: dict[str, Any], i: int, size: int) -> None:
    """It is dict number `i`, every byte of it."""
    assert list(got) == ["i", "x"] and got["i"] == i and got["x"].shape == (size,)
    assert np.array_equal(got["x"].numpy(), _bytes_of(i, size)), f"other bytes in dict {i}"


def _bytes_of(i: int, size: int) -> np.ndarray:
    return np.resize(np.roll(_PATTERN, -i), size)
