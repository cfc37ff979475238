"""`zmqpp restart` and `zmqpp drain` on a real pipeline under load: no request fails, no token differs.

The tests of this file run in order on one `zmqpp serve`; the last one ends it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES, PROMPTS
from tests.integration.entry import Entry, entry, zmqpp
from tests.integration.serving import NAME, long_only
from zmqpp.models import docs_llama

LONG = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": 900, "ignore_eos": True, "stream": True}
DONE_S = 240.0


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    with entry(tmp_path_factory.mktemp("rolling"), [str(docs_llama()), "--max-restarts", "1"], 2) as running:
        running.await_state("ready")
        yield running


def ordered(pipeline: Entry, *words: str) -> subprocess.CompletedProcess[str]:
    return zmqpp(*words[:1], "--log-dir", str(pipeline.log_dir), *words[1:], timeout_s=DONE_S)


def pids(pipeline: Entry) -> list[int]:
    return [stage["pid"] for stage in pipeline.status()["stages"]]


class Asking:
    """Clients that ask all cases, again and again, until told to stop."""

    def __init__(self, pipeline: Entry) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.errors: list[Exception] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(pipeline,))
        self._thread.start()

    def _ask(self, pipeline: Entry) -> None:
        try:
            while not self._enough.wait(0.5):
                self.rounds.append(pipeline.served.answers(CASES, at_once=16, timeout_s=DONE_S))
        except Exception as error:
            self.errors.append(error)

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(DONE_S)
        assert not self._thread.is_alive() and not self.errors, self.errors


@contextmanager
def under_load(pipeline: Entry, expected: dict[str, Any]) -> Iterator[None]:
    asking = Asking(pipeline)
    time.sleep(1.0)
    try:
        yield
    finally:
        asking.stop()
    assert asking.rounds and all(answers == expected for answers in asking.rounds)


def test_every_stage_is_replaced_under_load_and_no_request_fails(
    pipeline: Entry, expected: dict[str, Any]
) -> None:
    before = pids(pipeline)
    with under_load(pipeline, expected):
        done = ordered(pipeline, "restart", "--stage", "all")
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert next(line for line in lines if "requests waited" in line).startswith("stage 1:")
    assert "waiting for" in done.stdout and lines[-1].startswith(
        "all 2 stages are ready; no request was lost"
    )
    assert not set(before) & set(pids(pipeline))
    status = pipeline.status()
    assert (status["losses"], status["restarts"], status["replacements"]) == (0, 0, 2)
    kinds = [event["kind"] for event in status["events"]]
    assert "lost" not in kinds and kinds.count("restarted") == 2
    assert "zmqpp_pipeline_replaced_stages_total 2.0" in httpx.get(f"{pipeline.url}/metrics", timeout=10).text


@long_only
def test_a_bad_setting_does_not_take_the_pipeline_down(pipeline: Entry, expected: dict[str, Any]) -> None:
    with under_load(pipeline, expected):
        done = ordered(pipeline, "restart", "--stage", "1", "--", "--max-model-len", "512")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        "stage 1 was not replaced, and runs as before" in done.stderr and "--max-model-len 512" in done.stderr
    )
    assert pipeline.status()["state"] == "ready"


def test_drained_it_finishes_what_runs_refuses_the_rest_and_comes_back(pipeline: Entry) -> None:
    with httpx.stream("POST", f"{pipeline.url}/v1/completions", json=LONG, timeout=120) as response:
        pieces = response.iter_lines()
        next(pieces)
        draining = threading.Thread(target=lambda: drained.append(ordered(pipeline, "drain")))
        drained: list[subprocess.CompletedProcess[str]] = []
        draining.start()
        deadline = time.monotonic() + 60
        while (health := httpx.get(f"{pipeline.url}/health", timeout=10)).json()["status"] != "draining":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert health.status_code == 503 and health.headers["retry-after"]
        refused = httpx.post(f"{pipeline.url}/v1/completions", json={**LONG, "stream": False}, timeout=10)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert "drained" in refused.json()["error"]["message"]
        assert "zmqpp_pipeline_draining 1.0" in httpx.get(f"{pipeline.url}/metrics", timeout=10).text
        late = ordered(pipeline, "drain", "--timeout", "0")
        assert late.returncode == 2 and "another drain is under way" in late.stderr
        last = [line for line in pieces if line.startswith("data: ")][-2:]
    assert last[1] == "data: [DONE]" and json.loads(last[0][6:])["choices"][0]["finish_reason"] == "length"
    draining.join(60)
    assert drained[0].returncode == 0, drained[0].stderr
    assert "no request is left" in drained[0].stdout
    assert ordered(pipeline, "drain", "--resume").returncode == 0
    assert httpx.get(f"{pipeline.url}/health", timeout=10).status_code == 200


def test_a_stage_that_cannot_come_back_ends_the_pipeline_by_name_and_nobody_waits_for_ever(
    pipeline: Entry,
) -> None:
    stage = pipeline.status()["stages"][1]
    host, _, port = stage["bound"].removeprefix("tcp://").rpartition(":")
    os.kill(stage["pid"], signal.SIGKILL)
    with socket.socket() as squatter:
        take(squatter, host, int(port))
        answer = httpx.post(f"{pipeline.url}/v1/completions", json={**LONG, "stream": False}, timeout=DONE_S)
        assert answer.status_code == 503
        said = answer.json()["error"]["message"]
        assert pipeline.process.wait(DONE_S) == 1
    last = pipeline.output.read_text().strip().splitlines()[-1]
    assert last.startswith("zmqpp: stage 1 ") and last.endswith("given up after 1 restarts in a row")
    assert f"port {port}" in last or f":{port}" in last
    assert "stage 1" in said and "given up" in said


def take(squatter: socket.socket, host: str, port: int) -> None:
    """As soon as who was killed lets go of it."""
    squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + 10
    while True:
        try:
            squatter.bind((host, port))
            return squatter.listen()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.001)
