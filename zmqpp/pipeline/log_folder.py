"""The folder of a pipeline's logs: one pipeline has it, for as long as it runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zmqpp.errors import ConfigError

__all__ = ["own_log_dir"]


@contextmanager
def own_log_dir(path: Path) -> Iterator[None]:
    """Create the folder and hold it, so that two pipelines do not write the same logs."""
    try:
        if not path.exists():
            path.mkdir(parents=True)
            (path / ".gitignore").write_text("*\n")
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"log folder {path}: {error.strerror}") from error
    try:
        _lock(folder, path)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, path: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"log folder {path} is in use by another pipeline; choose another with --log-dir"
        ) from None
