"""The folder an export writes into: whose it is, whether it may be used, and what lies there from before."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zmqpp.checkpoint.config import PIPELINE_FILE, PIPELINE_INFO
from zmqpp.checkpoint.durable import discard, sync_folder, write_file
from zmqpp.checkpoint.manifest import PipelineManifest, read_manifest
from zmqpp.errors import ConfigError, ResourceError, ZmqppError
from zmqpp.units import size

BEGUN_FILE = ".zmqpp-export.json"
"""What the export in this folder will be; gone once PIPELINE_FILE is there."""

_STAGE = re.compile(r"stage_\d+")
_HIDDEN = re.compile(r"\.stage_\d+\.(partial|old)")


def check_place(out: Path, model: Path) -> None:
    """Refuse to write into the model, or where it would be taken for a stage.

    Raises:
        ConfigError: `out` is the model's folder or lies in it, or the model lies in what `out` has for stages.
    """
    out, model = out.resolve(), model.resolve()
    if out == model or model in out.parents:
        raise ConfigError(f"--output-dir {out} lies in the model's folder {model}: give a folder beside it")
    below = model.relative_to(out).parts[0] if out in model.parents else ""
    if _STAGE.fullmatch(below) or _HIDDEN.fullmatch(below):
        raise ConfigError(
            f"the model lies in {out / below}, which this export would write: give another --output-dir"
        )


@contextmanager
def opened(out: Path) -> Iterator[None]:
    """Make the folder, and keep other exports out of it; a folder made here and left empty is removed.

    Raises:
        ConfigError: it cannot be written, or another export is at work.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"--output-dir {out} cannot be made or opened: {error.strerror}") from None
    try:
        _lock(descriptor, out)
        if not os.access(out, os.W_OK | os.X_OK):
            raise ConfigError(
                f"--output-dir {out} is read-only here: give another folder, or make it writable"
            )
        yield
    finally:
        os.close(descriptor)
        if made and not any(out.iterdir()):
            out.rmdir()


def _lock(descriptor: int, out: Path) -> None:
    """The folder itself is locked, so that no lock file is left; the kernel lets go when the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another zmqpp export is writing into {out}: wait for it, or stop it") from None
    except OSError:
        pass  # Some network file systems cannot lock a folder; then two exports are the user's to keep apart.


def in_the_way(out: Path, wanted: PipelineManifest, overwrite: bool) -> list[Path] | None:
    """What `begin` will discard; None when this very export was begun here before and goes on.

    Raises:
        ConfigError: something else lies here, and `overwrite` is not set.
    """
    before = _before(out, overwrite)
    if before is not None and before.is_of_the_same(wanted):
        return None
    stages = [path for path in out.iterdir() if _STAGE.fullmatch(path.name)]
    hidden = [path for path in out.iterdir() if _HIDDEN.fullmatch(path.name)]
    # An export that came to nothing, for lack of space say, is no obstacle.
    if not overwrite and (stages or hidden):
        unknown = f"{[*stages, *hidden][0].name}, which is of no export known here"
        what = before.difference(wanted) if before else unknown
        raise ConfigError(
            f"{out} already holds {what}: give another --output-dir, or --overwrite to replace it"
        )
    foreign = [path for path in stages if not _is_ours(path)]
    if foreign:
        raise ConfigError(f"{foreign[0]} is no exported stage, so it is not overwritten: remove it yourself")
    return [*stages, *hidden]


def begin(out: Path, wanted: PipelineManifest, discarded: list[Path]) -> None:
    """Discard what was in the way and note what this export will be."""
    (out / PIPELINE_FILE).unlink(missing_ok=True)  # First: from here on nothing looks whole.
    sync_folder(out)
    for path in discarded:
        discard(path)
    write_file(out / BEGUN_FILE, wanted.encode())


def _before(out: Path, overwrite: bool) -> PipelineManifest | None:
    for name in (PIPELINE_FILE, BEGUN_FILE):
        if (out / name).exists():
            try:
                return read_manifest(out, name)
            except ConfigError:
                if not overwrite:
                    raise
    return None


def _is_ours(stage: Path) -> bool:
    try:
        return PIPELINE_INFO in json.loads((stage / "config.json").read_text())
    except (OSError, ValueError):
        return False


def reopen(out: Path, wanted: PipelineManifest) -> None:
    """A finished export turned out damaged: it is an unfinished one again."""
    write_file(out / BEGUN_FILE, wanted.encode())
    (out / PIPELINE_FILE).unlink(missing_ok=True)
    sync_folder(out)


def finish(out: Path, manifest: PipelineManifest) -> None:
    """All stages are whole and checked: say so."""
    write_file(out / PIPELINE_FILE, manifest.encode())
    (out / BEGUN_FILE).unlink(missing_ok=True)


def check_space(out: Path, needed_bytes: int, discarded: Sequence[Path] = ()) -> None:
    """Raise ResourceError when the disk of `out`, once `discarded` is gone, has less than `needed_bytes` free."""
    free = os.statvfs(out)
    free_bytes = free.f_bavail * free.f_frsize + sum(map(_disk_bytes, discarded))
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"the export needs {size(needed_bytes)} more in {out}, {size(free_bytes)} are free there: "
            f"free some, or give an --output-dir on another disk"
        )


def _disk_bytes(folder: Path) -> int:
    """What removing it gives back: a file with another name elsewhere gives nothing."""
    files = [path.lstat() for path in folder.rglob("*")]
    return sum(file.st_blocks * 512 for file in files if file.st_nlink == 1)


def explained(out: Path, error: OSError) -> ZmqppError:
    """A failure while writing, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"no space is left in {out} ({error.strerror}): free some, then the same command goes on from here"
        )
    where = f" {error.filename}" if error.filename else ""
    return ResourceError(f"the export into {out} failed:{where} {error.strerror or error}")
