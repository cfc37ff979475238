"""The one ordinary vLLM of a comparison: ready, ended, too slow, and gone when its owner is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zmqpp.errors import LaunchError
from zmqpp.pipeline.client import is_healthy
from zmqpp.pipeline.plan import ApiEndpoint
from zmqpp.pipeline.ports import free_port
from zmqpp.pipeline.single import SingleServer

sys.path.insert(0, str(Path(__file__).parent))
from fake_vllm import fake_vllm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(fake_vllm(tmp_path)), str(ROOT)])}


def server(tmp_path: Path, model: str) -> SingleServer:
    return SingleServer(model, ApiEndpoint("127.0.0.1", free_port(), "m"), (), tmp_path / "log")


def test_it_is_ready_when_it_answers_and_gone_when_left(path: dict[str, str], tmp_path: Path) -> None:
    with server(tmp_path, "model") as single:
        single.start(path)
        single.wait_ready(30)
        assert is_healthy(single.api.url)
    assert not is_healthy(single.api.url)


def test_one_that_ends_is_told_with_its_reason_and_its_log(path: dict[str, str], tmp_path: Path) -> None:
    with server(tmp_path, "broken") as single:
        single.start(path)
        with pytest.raises(
            LaunchError, match=r"ended \(exit code 3\): ValueError: no such model; its log is"
        ):
            single.wait_ready(30)


def test_one_that_is_too_slow_is_given_up(path: dict[str, str], tmp_path: Path) -> None:
    with server(tmp_path, "slow") as single:
        single.start(path)
        with pytest.raises(LaunchError, match="not ready after 0 s; its log is"):
            single.wait_ready(0)


_OWNER = """
import signal, sys
from pathlib import Path
from zmqpp.pipeline.plan import ApiEndpoint
from zmqpp.pipeline.single import SingleServer
log, port = Path(sys.argv[1]), int(sys.argv[2])
with SingleServer("model", ApiEndpoint("127.0.0.1", port, "m"), (), log) as single:
    single.start({})
    single.wait_ready(30)
    print("READY", flush=True)
    signal.pause()
"""


def test_kill_9_of_its_owner_ends_it_too(path: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(log), str(free_port())],
        env={**os.environ, **path},
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "READY\n"
        pid = int(log.read_text())
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)
