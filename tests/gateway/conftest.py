"""A gateway over a fake stage 0, both on real sockets."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from zmqpp.gateway.app import build_app
from zmqpp.gateway.server import GatewayServer
from zmqpp.watch.status import Event, PipelineStatus, StageStatus

ROOT = Path(__file__).resolve().parents[2]


class FakeSource:
    """The launcher's word: whatever the test says."""

    def __init__(self) -> None:
        self.word = ready()
        self.lost_from_outside = True

    def status(self) -> PipelineStatus:
        return self.word


def ready(stages: int = 2) -> PipelineStatus:
    """What a launcher says of a pipeline that runs."""
    return PipelineStatus(
        "ready",
        [StageStatus(n, "ready", pid=100 + n, log=f"logs/stage_{n}.log") for n in range(stages)],
        since=50.0,
        total_stages=stages,
        restarts=2,
        losses=4,
        recoveries=3,
        events=[Event(10.0, "ready", "all stages are ready"), Event(30.0, "lost", "stage 1 was killed", 1)],
    )


class Stage:
    """The fake stage 0 of `fake_stage.py`, in a process of its own."""

    def __init__(self, status: PipelineStatus | None = None) -> None:
        encoded = msgspec.json.encode(status).decode() if status is not None else ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.fake_stage", encoded],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def go(self) -> None:
        ask(self.url + "/go")

    def aborts(self) -> list[str]:
        return list(ask(self.url + "/aborts").json()["aborts"])

    def begun(self) -> list[str]:
        return list(ask(self.url + "/aborts").json()["begun"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def ask(url: str, **more: object) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=20, **more)  # type: ignore[arg-type]


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that must come; the deadline only ends a failing test."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)


@contextmanager
def gateway_over(url: str, source: FakeSource) -> Iterator[str]:
    with GatewayServer(build_app(url, source), "127.0.0.1", 0) as server:
        yield server.url


@pytest.fixture(scope="module")
def running_stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def stage() -> Iterator[Stage]:
    """One that the test may kill."""
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture
def gateway(running_stage: Stage, source: FakeSource) -> Iterator[str]:
    with gateway_over(running_stage.url, source) as url:
        yield url
