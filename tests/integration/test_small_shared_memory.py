"""A /dev/shm of 1 MB, as some containers have it: the pipeline answers as ever, and says which way its tensors go."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES
from tests.integration.machine import Machine, check_possible, one_machine, stop
from tests.integration.serving import ENVIRONMENT, FLAGS, NAME, READY_S, Served, long_only
from zmqpp.models import docs_llama

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")
pytestmark = pytest.mark.vllm
URL = "http://127.0.0.1:8000"


# One ordinary vLLM process, which computed what is expected, needs 160 MB there: it ran elsewhere.
@long_only
def test_a_pipeline_with_1_mb_of_shared_memory_computes_the_tokens_of_one_process(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    check_possible()
    serve = [sys.executable, "-m", "zmqpp", "serve", str(docs_llama()), "--num-stages", "2"]
    serve += [
        "--port",
        "8000",
        "--api-port",
        "8001",
        "--log-dir",
        str(tmp_path / "logs"),
        "--name",
        NAME,
        "--",
        *FLAGS,
    ]
    command = "mount -o remount,size=1m /dev/shm && df /dev/shm && exec " + shlex.join(serve)
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    output = tmp_path / "output"
    with one_machine("zmqpp-small", "") as machine, output.open("wb") as log:
        serving = machine.start(command, log, environment)
        try:
            await_health(machine, serving, output)
            assert machine.inside(lambda: Served(URL).answers(CASES, at_once=16)) == expected
        finally:
            stop(serving)
    told = output.read_text()
    assert " 1024 " in told and "tensors by" in told, told[-3000:]


def await_health(machine: Machine, serving: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not machine.inside(is_healthy):
        assert serving.poll() is None and time.monotonic() < deadline, output.read_text()[-3000:]
        time.sleep(0.3)


def is_healthy() -> bool:
    try:
        return httpx.get(f"{URL}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
