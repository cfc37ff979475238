"""Memory of this machine, and what of it a process here may still take. Source: proc(5), cgroups(7)."""

from __future__ import annotations

from pathlib import Path

from zmqpp.pipeline.cgroup import memory_headroom

__all__ = ["available_bytes", "total_bytes"]

_MEMINFO = Path("/proc/meminfo")


def total_bytes() -> int:
    return _meminfo("MemTotal")


def available_bytes() -> int:
    """What this process and its children may still take: the machine's, or what its control groups leave."""
    available, headroom = _meminfo("MemAvailable"), memory_headroom()
    return available if headroom is None else min(available, headroom)


def _meminfo(name: str) -> int:
    """Bytes; /proc/meminfo has kB."""
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/meminfo has no {name}")
