"""How many ranks each stage has, by the flags for its `vllm serve`."""

from __future__ import annotations

from collections.abc import Sequence

from zmqpp.errors import ConfigError

__all__ = ["ranks_given"]

_FLAGS = ("--tensor-parallel-size", "--tensor_parallel_size", "-tp")


def ranks_given(flags: Sequence[str]) -> int | None:
    """The tensor-parallel size, the last one given; None without any.

    Raises:
        ConfigError: it is no number above 0.
    """
    found: int | None = None
    for word, following in zip(flags, [*flags[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name in _FLAGS:
            found = _size(value if equals else following)
    return found


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(
            f"--tensor-parallel-size {text!r}: give the number of ranks of each stage, 1 or more"
        )
    return int(text)
