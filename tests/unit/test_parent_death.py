"""Processes that go with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zmqpp.vllm.parent_death import die_with_parent, follow_parent


def be_child(how: str, here: str) -> None:
    """Say who it is, and stay."""
    if how == "die":
        die_with_parent()
    else:
        follow_parent(Path(here, "removed").touch)
    Path(here, "pid.part").write_text(str(os.getpid()))
    Path(here, "pid.part").rename(Path(here, "pid"))
    time.sleep(60)


def be_parent(how: str, here: str) -> None:
    """Start the child from a thread, which ends where the child bears it."""
    child = multiprocessing.get_context("spawn").Process(target=be_child, args=(how, here))
    if how == "die":
        child.start()
    else:
        thread = threading.Thread(target=child.start)
        thread.start()
        thread.join()
    time.sleep(60)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["die", "follow"])
def test_a_child_goes_with_its_killed_parent(how: str, tmp_path: Path) -> None:
    words = f"from tests.unit.test_parent_death import be_parent; be_parent({how!r}, {str(tmp_path)!r})"
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen([sys.executable, "-c", words], env={**os.environ, "PYTHONPATH": root})
    told, deadline = tmp_path / "pid", time.monotonic() + 60
    try:
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(told.read_text())
        time.sleep(0.2)
        assert alive(child), "the thread that started it has ended, its process has not"
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
    assert (tmp_path / "removed").exists() == (how == "follow")
