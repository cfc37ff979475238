"""`zmqpp serve` as a user runs it: a child process, its HTTP entry, and everything it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.integration.serving import ENVIRONMENT, FLAGS, NAME, READY_S, Served
from zmqpp.pipeline.ports import free_base_port

MARK = "ZMQPP_TEST_ENTRY"


@dataclass
class Entry:
    """A running `zmqpp serve`; `served` speaks to its HTTP entry."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    log_dir: Path

    @property
    def served(self) -> Served:
        return Served(self.url, log_dir=self.log_dir)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/pipeline/status", timeout=10).json()
        return found

    def await_state(self, state: str, restarts: int = 0, within_s: float = READY_S) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status = self.status()
                if status["state"] == state and status["restarts"] == restarts:
                    return status
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"never {state}:\n{self.output.read_text()[-3000:]}")

    def members(self) -> list[int]:
        """Live processes that `zmqpp serve` has started, itself included."""
        return marked(str(self.log_dir))


def marked(value: str) -> list[int]:
    wanted, found = f"{MARK}={value}".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and wanted in (entry / "environ").read_bytes().split(b"\0")
                and b") Z " not in (entry / "stat").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def await_gone(value: str, within_s: float = 40.0) -> list[int]:
    """Who is still there after `within_s`; none is good."""
    deadline = time.monotonic() + within_s
    while (left := marked(value)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@contextmanager
def entry(folder: Path, model: Sequence[str], stages: int, flags: Sequence[str] = FLAGS) -> Iterator[Entry]:
    """`zmqpp serve MODEL …` on free ports; it may still be loading."""
    base = free_base_port(stages + 3)
    port, output, log_dir = base + stages + 1, folder / "serve.out", folder / "logs"
    command = [sys.executable, "-m", "zmqpp", "serve", *model, "--base-port", str(base), "--port", str(port)]
    command += ["--api-port", str(port + 1), "--log-dir", str(log_dir), "--name", NAME, "--", *flags]
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, MARK: str(log_dir)},
            start_new_session=True,
        )
    try:
        yield Entry(process, f"http://127.0.0.1:{port}", output, log_dir)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert not await_gone(str(log_dir))


def zmqpp(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """`zmqpp …`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "zmqpp", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **ENVIRONMENT, "COLUMNS": "160"},
        check=False,
    )


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
