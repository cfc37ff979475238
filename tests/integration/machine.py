"""Two machines in one: each with its own network, processes, host name and /dev/shm, and a cable between them.

They are namespaces of the kernel, held by one process each; when that is killed, the kernel ends all else in them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TypeVar

import pytest

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SETUP = 'hostname "$0" && mount -t tmpfs -o size=2g tmpfs /dev/shm && ip link set lo up && echo up && exec sleep 3600'
T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """One of the two; `pid` is the process that holds its namespaces."""

    name: str
    address: str
    pid: int

    def start(self, command: str, log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Run a shell command there, with its output in `log`."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-p", "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def run(self, *command: str) -> None:
        """A short command there, as root of the machine; asserts that it succeeds."""
        run("nsenter", "-t", str(self.pid), "-n", "-m", *command)

    def inside(self, act: Callable[[], T]) -> T:
        """What `act` returns in a thread that is on this machine's network, as are the threads it starts."""
        outcome: list[T | BaseException] = []

        def run() -> None:
            try:
                with Path(f"/proc/{self.pid}/ns/net").open("rb") as network:
                    if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                outcome.append(act())
            except BaseException as error:
                outcome.append(error)

        thread = Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """10.77.0.1 and 10.77.0.2; skips the test where they cannot be made."""
    check_possible()
    with ExitStack() as holders:
        first = holders.enter_context(one_machine("zmqpp-a", "10.77.0.1"))
        second = holders.enter_context(one_machine("zmqpp-b", "10.77.0.2"))
        cable = ["ip", "link", "add", "veth0", "netns", str(first.pid), "type", "veth"]
        run(*cable, "peer", "name", "veth0", "netns", str(second.pid))
        for machine in (first, second):
            enter = ["nsenter", "-t", str(machine.pid), "-n", "ip"]
            run(*enter, "address", "add", f"{machine.address}/24", "dev", "veth0")
            run(*enter, "link", "set", "veth0", "up")
        yield first, second


def stop(started: subprocess.Popen[bytes], within_s: float = 20.0) -> None:
    """SIGTERM to what `Machine.start` has started; what is left ends with its machine."""
    for child in children(started.pid):
        os.kill(child, signal.SIGTERM)
    try:
        started.wait(within_s)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


def children(pid: int) -> list[int]:
    """Of any of its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def check_possible() -> None:
    for tool in ("ip", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"two machines need the command {tool}")
    namespaces = ["unshare", "-n", "-m", "-u", "-p", "-f", "--mount-proc"]
    tried = subprocess.run([*namespaces, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"two machines need the right to make network namespaces: {tried.stderr.strip()[:200]}")


@contextmanager
def one_machine(name: str, address: str) -> Iterator[Machine]:
    holder = subprocess.Popen(
        [
            "unshare",
            "-n",
            "-m",
            "-u",
            "-p",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            _SETUP,
            name,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        yield Machine(name, address, children(holder.pid)[0])
    finally:
        # --kill-child: the first process of the namespace goes with it, and the kernel ends the others.
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def run(*command: str) -> str:
    """What it prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
