"""Libraries of torch's compiler that a killed process has left half written.

On a CPU torch compiles a kernel when it is first needed, also in eager mode: `NAME.cpp` to `NAME.so` beside it, in a
folder that all processes of a user share. Whoever is killed meanwhile leaves a piece of the library, and torch takes
what is there: each new process of the stage would fail where it needs that kernel, and every other vLLM on the machine.
Here the first one that fails removes it; the next one compiles it anew.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vllm.logger import init_logger

__all__ = ["removes_broken_library"]

logger = init_logger("vllm.zmqpp.broken_library")
F = TypeVar("F", bound=Callable[..., Any])

_LOADER = re.compile(r"(/[^\n:]+\.so): (?:file too short|invalid ELF header|cannot read file data)")
"""What the C library says of a piece; torch hands it on in an error of its own."""


def removes_broken_library(method: F) -> F:
    """`method`, which may compile; what it raises stays as it is."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            _remove_named_by(error)
            raise

    return call  # type: ignore[return-value]


def _remove_named_by(error: Exception) -> None:
    found = _LOADER.search(str(error))
    if found is None:
        return
    library = Path(found[1])
    if not library.with_suffix(".cpp").exists():
        return  # not torch's own: nobody would write it again
    try:
        library.unlink()
    except OSError as refused:
        logger.warning("%s is incomplete, and cannot be removed: %s", library, refused)
    else:
        logger.warning(
            "removed %s: a process that was killed had left it incomplete; the next one compiles it", library
        )
