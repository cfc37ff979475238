"""kill -9 an export before each of its steps in turn, then give the same command again; one line of JSON a kill.

    python export_sweep.py MODEL OUT RANGES [FROM]

Forks from one process that has imported everything, so that a kill costs milliseconds. With FROM an export of other
ranges lies in OUT each time, and is overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fault import export_child
from zmqpp.cli import main


def forked(work: Callable[[], int]) -> int:
    """Exit status of `work` in a child, negative for a signal; its output is lost."""
    pid = os.fork()
    if pid == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def command(model: str, out: Path, ranges: str) -> list[str]:
    shards = ["--max-shard-size", "2KB", "--overwrite"]
    return ["export", "--model", model, "--output-dir", str(out), "--ranges", ranges, *shards]


def killed(model: str, out: Path, ranges: str, at: int) -> int:
    def work() -> int:
        export_child.patch(export_child.kill_at(at))
        return main(command(model, out, ranges))

    return forked(work)


def sweep(model: str, out: Path, ranges: str, old_ranges: str = "") -> None:
    forked(lambda: main(command(model, out, ranges)))
    whole = contents(out)
    old: dict[str, bytes] = {}
    shutil.rmtree(out)
    if old_ranges:
        forked(lambda: main(command(model, out, old_ranges)))
        old = contents(out)
    for at in range(1, 10_000):
        shutil.rmtree(out, ignore_errors=True)
        if old_ranges:
            forked(lambda: main(command(model, out, old_ranges)))
        status = killed(model, out, ranges, at)
        left = contents(out) if out.exists() else {}
        say = {
            "at": at,
            "killed": status == -signal.SIGKILL,
            "says whole": "pipeline.json" in left,
            "is whole": {k: v for k, v in left.items() if not k.startswith(".")} in (whole, old),
            "half a stage": [
                stage.name
                for stage in out.glob("stage_*")
                if contents(stage) not in (_of(whole, stage.name), _of(old, stage.name))
            ],
            "kept": sum(name.endswith(".safetensors") for name in left),
        }
        again = forked(lambda: main(command(model, out, ranges)))
        say |= {"again": again, "same": contents(out) == whole}
        print(json.dumps(say), flush=True)
        if status != -signal.SIGKILL:
            return


def _of(files: dict[str, bytes], stage: str) -> dict[str, bytes]:
    return {
        name.partition("/")[2]: content for name, content in files.items() if name.startswith(f"{stage}/")
    }


if __name__ == "__main__":
    os.fsync = lambda _: None  # Thousands of them; what a process has written outlives its kill without.
    sweep(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5])
