"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PART = ".part"
"""Suffix of a file that is being written."""


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step."""
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; the files themselves are synced by who wrote them."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Give a finished folder its name, durably."""
    sync_folder(partial)
    partial.replace(final)
    sync_folder(final.parent)


def discard(folder: Path) -> None:
    """Remove a folder so that, killed half-way, no half of it keeps its name."""
    if not folder.exists():
        return
    doomed = folder
    if not folder.name.startswith("."):
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
    shutil.rmtree(doomed)
