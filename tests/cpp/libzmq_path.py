"""Prints the file of the libzmq that pyzmq loads, for programs that are not Python."""

from __future__ import annotations

from pathlib import Path

import zmq

loaded = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
found = sorted(path for path in loaded if Path(path).name.startswith("libzmq"))
print(found[0] if found else "libzmq.so.5")  # linked into pyzmq itself: take the system's
assert zmq.zmq_version_info() >= (4, 3)
