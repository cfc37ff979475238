"""How much of the machine this process may take: the limits of its control groups. Source: cgroups(7)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_limit", "memory_headroom", "memory_limit"]

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
    return min((limit for limit, _ in _memory_limits()), default=None)


def memory_headroom() -> int | None:
    """Bytes that may still be taken; None without a limit. Files in the page cache are given up when room is needed."""
    left = [
        limit - max(0, _number(group / used) - _cached(group)) for limit, (group, used) in _memory_limits()
    ]
    return max(0, min(left)) if left else None


def _memory_limits() -> Iterator[tuple[int, tuple[Path, str]]]:
    """Each limit, with its group and the file there that says how much is used."""
    for name, used, controller in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory"),
    ):
        for path in _files(name, controller):
            text = path.read_text().strip()
            if text != "max" and int(text) < 1 << 60:
                yield int(text), (path.parent, used)


def _number(path: Path) -> int:
    return int(path.read_text()) if path.is_file() else 0


def _cached(group: Path) -> int:
    """Source: memory.stat of both versions; of the first, `total_` counts the groups within."""
    stat = group / "memory.stat"
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _values(name: str, controller: str = "") -> Iterator[str]:
    for path in _files(name, controller):
        yield path.read_text().strip()


def _files(name: str, controller: str) -> Iterator[Path]:
    """Of this process's group and of all that hold it; the limits of all of them apply."""
    for line in _GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        root = _ROOT / controller
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                yield place / name
