"""How much of the machine this process may take: the limits of its control groups. Source: cgroups(7)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_limit", "memory_limit"]

_ROOT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")


def cpu_limit() -> float | None:
    """Cores, as a quota of time; None without a limit."""
    found = []
    for text in _values("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            found.append(int(quota) / int(period or 100_000))
    for quota, period in zip(
        _values("cpu.cfs_quota_us", "cpu"), _values("cpu.cfs_period_us", "cpu"), strict=False
    ):
        if int(quota) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit() -> int | None:
    """Bytes; None without a limit."""
    texts = [*_values("memory.max"), *_values("memory.limit_in_bytes", "memory")]
    numbers = [int(text) for text in texts if text != "max"]
    return min((number for number in numbers if number < 1 << 60), default=None)


def _values(name: str, controller: str = "") -> Iterator[str]:
    """Of this process's group and of all that hold it; the limits of all of them apply."""
    for line in _GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        root = _ROOT / controller
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                yield (place / name).read_text().strip()
