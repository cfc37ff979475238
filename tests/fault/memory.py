"""What this process uses of memory at most meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def grows_by_at_most(size_bytes: int) -> Iterator[None]:
    """Resident memory, at its peak. Untouched address space does not count, as it costs nothing."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_bytes()
    yield
    grown = _peak_bytes() - before
    assert grown <= size_bytes, f"{grown} bytes more than before, at most {size_bytes} were allowed"


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no VmHWM in /proc/self/status")
