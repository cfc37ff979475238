"""What every test must leave behind: nothing."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch  # its threads and files are there before the first snapshot

pytest_plugins = ["tests.integration.reference"]
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in a shell's background: the processes under test would inherit that, and never hear a Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Started by nohup: here it goes on being ignored, but a handler is not inherited across exec.
    signal.signal(signal.SIGHUP, lambda *_: None)

_GRACE_S = 5.0
"""Threads of ZeroMQ and dying processes may take a moment."""
_OUR_THREADS = ("zmqpp", "ZMQbg")
_RUN = f"PYTEST_ZMQPP_RUN={os.getpid()}"
"""In the environment of every process that descends from this one, even of those whose parent has died."""
os.environ.update([_RUN.split("=")])


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No descriptor, thread, process, shared file or mapping remains. Not for vLLM, which keeps its own."""
    if request.node.get_closest_marker("vllm"):
        yield
        return
    before = {name: look() for name, look in _LEFTOVERS.items()}
    before["threads"] |= _all_threads()  # those of a wider fixture may not have named themselves yet
    yield
    deadline = time.monotonic() + _GRACE_S
    while left := {name: new for name, look in _LEFTOVERS.items() if (new := look() - before[name])}:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left something behind: {left}")
        gc.collect()
        time.sleep(0.01)


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return {fd for fd in found if any(kind in fd for kind in _KINDS)}


_KINDS = ("socket:", "eventfd", "pipe:", "eventpoll", "/dev/shm/", "memfd:")


def _threads() -> set[str]:
    found = {f"python {thread.name} {thread.ident}" for thread in threading.enumerate()}
    for task in _tasks():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith(_OUR_THREADS):
            found.add(f"thread {task.name}")
    return found


def _all_threads() -> set[str]:
    return {f"thread {task.name}" for task in _tasks()}


def _tasks() -> list[Path]:
    """All threads. One listing may lack some: the kernel ends it at a thread that exits while it is being read."""
    for _ in range(100):
        found = list(Path("/proc/self/task").iterdir())
        status = Path("/proc/self/status").read_text()
        if f"\nThreads:\t{len(found)}\n" in status:
            break
    return found


def _processes() -> set[str]:
    """Children, even those that ended and were not waited for, and whatever else descends from this process."""
    found = {path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if _is_ours(path)}
    for task in _tasks():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue
        found.update(pid for pid in pids if not _is_resource_tracker(pid))
    return found


def _is_ours(environ: Path) -> bool:
    pid = environ.parent.name
    try:
        ours = f"{_RUN}\0".encode() in environ.read_bytes()
    except OSError:  # another user's, or gone
        return False
    return ours and int(pid) != os.getpid() and not _is_resource_tracker(pid)


def _is_resource_tracker(pid: str) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _shared_files() -> set[str]:
    return {str(path) for path in Path("/dev/shm").glob("zmqpp*") if not _belongs_to_others(path)}


def _belongs_to_others(segment: Path) -> bool:
    """Its owner, whose pid is in its name, lives and does not descend from this process."""
    _, _, rest = segment.name.partition("-")
    pid = rest.partition("-")[0]
    environ = Path("/proc") / pid / "environ"
    return pid.isdigit() and int(pid) != os.getpid() and environ.exists() and not _is_ours(environ)


def _mappings() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {f"{line.split()[0]} {line.split()[5]}" for line in lines if "/dev/shm/" in line}


_LEFTOVERS: dict[str, Callable[[], set[str]]] = {
    "descriptors": _descriptors,
    "threads": _threads,
    "processes": _processes,
    "shared files": _shared_files,
    "shared mappings": _mappings,
}
