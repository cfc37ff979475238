"""An export in a process of its own that can be made to die, or to wait, at any of its writes.

    python export_child.py MODEL OUT RANGES MODE [AT]

MODE `kill`: kill -9 before step AT; prints the number of steps when it came to the end. `wait`: print a line at step AT
and sleep until stopped. `memory`: print by how many bytes memory grew at most. `limit`: no file may exceed AT bytes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zmqpp.checkpoint import copying
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.export import Export
from zmqpp.cli import main
from zmqpp.layers import LayerRange

steps = 0


def counted(original: Callable[..., Any], at_step: Callable[[], None]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        global steps
        steps += 1
        at_step()
        return original(*arguments, **named)

    return call


def patch(at_step: Callable[[], None]) -> None:
    """Every write of tensors, every sync, every rename and every removal is a step."""
    copying._write_all = counted(copying._write_all, at_step)
    for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name), at_step))


def kill_at(at: int) -> Callable[[], None]:
    def at_step() -> None:
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_step


def wait_at(at: int) -> Callable[[], None]:
    def at_step() -> None:
        if steps == at:
            print("waiting", flush=True)
            time.sleep(60)

    return at_step


def high_water_bytes() -> int:
    """Of this process's own memory; ru_maxrss would include the parent's before exec."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def run(model: str, out: str, ranges: str, mode: str, at: int = 0) -> int:
    if mode == "kill":
        patch(kill_at(at))
    elif mode == "wait":
        patch(wait_at(at))
    elif mode == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    elif mode == "memory":
        before = high_water_bytes()
        layers = [LayerRange.parse(text) for text in ranges.split(",")]
        Export(Checkpoint.open(model), layers, Path(out)).run()
        print(high_water_bytes() - before)
        return 0
    code = main(
        ["export", "--model", model, "--output-dir", out, "--ranges", ranges, "--max-shard-size", "2KB"]
    )
    print("steps", steps)
    return code


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:5], *map(int, sys.argv[5:])))
