"""Two networks of the kernel's own and a slow cable between them: what two machines far from one another have.

with throttled(100) as cable:
    cable.start(0, ["python3", "-m", …])      # a process on machine 0, which is 10.77.0.1

Needs root and the commands ip, tc, nsenter and unshare. The networks have no name: they end with the two processes that
hold them, which end when this process closes their input, or is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zmqpp.bench.transport import Unavailable

_MADE_S = 10.0
_TOOLS = ("ip", "tc", "nsenter", "unshare")


@dataclass(frozen=True)
class Cable:
    """Between machine 0 and machine 1."""

    mbit: int
    holders: tuple[int, int]

    def address(self, machine: int) -> str:
        return f"10.77.0.{machine + 1}"

    def start(self, machine: int, command: Sequence[str]) -> subprocess.Popen[str]:
        """Run it there, with its output in a pipe."""
        enter = ["nsenter", f"--net=/proc/{self.holders[machine]}/ns/net", *command]
        return subprocess.Popen(enter, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


@contextmanager
def throttled(mbit: int) -> Iterator[Cable]:
    """Raises Unavailable: why there can be none."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise Unavailable(f"a throttled link needs the command {missing[0]}")
    with ExitStack() as stack:
        first, second = (stack.enter_context(_network()) for _ in range(2))
        cable = Cable(mbit, (first, second))
        _run(
            "ip",
            "link",
            "add",
            "zmqpp0",
            "netns",
            first,
            "type",
            "veth",
            "peer",
            "name",
            "zmqpp0",
            "netns",
            second,
        )
        for machine, holder in enumerate(cable.holders):
            inside = ("nsenter", f"--net=/proc/{holder}/ns/net")
            _run(*inside, "ip", "address", "add", f"{cable.address(machine)}/24", "dev", "zmqpp0")
            # As little at once as a core can keep up with: what goes in one burst is not throttled.
            rate = ("rate", f"{mbit}mbit", "burst", f"{16 if mbit <= 200 else 64}kb", "latency", "200ms")
            _run(*inside, "tc", "qdisc", "add", "dev", "zmqpp0", "root", "tbf", *rate)
            for device in ("lo", "zmqpp0"):
                _run(*inside, "ip", "link", "set", device, "up")
        yield cable


@contextmanager
def _network() -> Iterator[int]:
    """The pid of a process that holds a network of its own."""
    holder = subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stderr is not None
    try:
        ours, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + _MADE_S
        while True:
            if holder.poll() is not None or time.monotonic() > deadline:
                why = holder.stderr.read().strip() if holder.poll() is not None else "it takes too long"
                raise Unavailable(f"a throttled link needs the right to make networks: {why}")
            if os.readlink(f"/proc/{holder.pid}/ns/net") != ours and _runs(holder.pid, "cat"):
                break
            time.sleep(0.01)
        yield holder.pid
    finally:
        holder.stdin.close()
        holder.wait(_MADE_S)
        holder.stderr.close()


def _runs(pid: int, program: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == program


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"a throttled link cannot be made: {' '.join(words)}: {done.stderr.strip()[:200]}")
