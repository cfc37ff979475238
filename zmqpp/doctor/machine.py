"""Memory, shared memory and limits of this machine against what the stages here will take."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from zmqpp.config import TransportConfig
from zmqpp.doctor.deployment import Deployment
from zmqpp.doctor.finding import Finding, ok, problem, warning
from zmqpp.pipeline.cgroup import memory_limit
from zmqpp.pipeline.memory import available_bytes, total_bytes

__all__ = ["SHARED", "leftovers", "limits", "memory", "shared_memory", "size"]

SHARED = Path("/dev/shm")
_LEAST_MEMORY = 2 << 30
"""Bytes a stage takes beside its weights and its cache: vLLM and torch with their libraries."""
_LEAST_FILES = 4096


def memory(deployment: Deployment) -> Iterator[Finding]:
    total, available = total_bytes(), available_bytes()
    limit = memory_limit()
    text = f"{size(available)} of {size(total)} available"
    if limit is not None and limit < total:
        text += f", this container may take {size(limit)}"
    needed = len(deployment.here) * _LEAST_MEMORY
    if available < needed:
        remedy = f"end other programs, or run fewer stages here: each takes about {size(_LEAST_MEMORY)} and its weights"
        yield warning("memory", text, remedy)
    else:
        yield ok("memory", text)


def shared_memory(deployment: Deployment) -> Iterator[Finding]:
    """Stages of one machine hand tensors over in /dev/shm; where it is too small they use the socket, at less speed."""
    config = TransportConfig.from_env()
    if config.lane == "tcp":
        yield ok(str(SHARED), "not used, as ZMQPP_LANE=tcp")
        return
    links = len(deployment.links_here)
    needed = links * config.shm_bytes
    try:
        found = os.statvfs(SHARED)
    except OSError as error:
        yield _shared_trouble(config, f"not there ({error.strerror})", "mount a tmpfs on it")
        return
    whole, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    text = f"{size(free)} of {size(whole)} free, links between stages here may take {size(needed)}"
    if not os.access(SHARED, os.W_OK | os.X_OK):
        yield _shared_trouble(config, "you may not write there", f"chmod 1777 {SHARED}")
    elif free < needed:
        gigabytes = -(-(needed + (1 << 30)) // (1 << 30))
        remedy = f"in a container: --shm-size={gigabytes}g or --ipc=host; or set ZMQPP_SHM_BYTES lower"
        yield _shared_trouble(config, text, remedy)
    else:
        yield ok(str(SHARED), text)


def _shared_trouble(config: TransportConfig, text: str, remedy: str) -> Finding:
    kind = problem if config.lane == "shm" else warning
    return kind(str(SHARED), text, remedy)


def leftovers() -> Iterator[Finding]:
    """Segments whose maker was killed in the milliseconds in which they have a name."""
    dead = [path for path in SHARED.glob("zmqpp-*") if _is_dead(path)]
    if not dead:
        yield ok("segments", "none left behind by killed processes")
        return
    held = sum(path.stat().st_blocks * 512 for path in dead)
    names = " ".join(str(path) for path in dead[:3]) + (" ..." if len(dead) > 3 else "")
    text = f"{len(dead)} left behind by killed processes hold {size(held)} ({names})"
    yield warning("segments", text, "the next link that opens here removes them; or rm them now")


def _is_dead(path: Path) -> bool:
    """As the engine sees it: a living maker holds a lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = f"open files {_limit(soft)}, locked memory {_limit(locked, in_bytes=True)}"
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        wanted = _LEAST_FILES if hard == resource.RLIM_INFINITY else min(65536, max(hard, _LEAST_FILES))
        remedy = f"many clients at once need more: ulimit -n {wanted}"
        yield warning("limits", text, remedy)
    else:
        yield ok("limits", text)


def _limit(value: int, *, in_bytes: bool = False) -> str:
    if value == resource.RLIM_INFINITY:
        return "unlimited"
    return size(value) if in_bytes else str(value)


def size(number: int) -> str:
    """Bytes as people read them, in binary units as limits and segments have them."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"
