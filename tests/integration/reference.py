"""What one ordinary vLLM process answers: the fixture of every test that compares with it, wherever it lies."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import CASES
from tests.integration.serving import one_process


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary vLLM process answers to `CASES`; asked once a run, by whichever worker comes first."""
    own = tmp_path_factory.mktemp("reference")
    shared = own.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    answers = shared / "expected.json"
    with (shared / "expected.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answers.exists():
            _ask(own / "vllm.log", answers)
    found: dict[str, Any] = json.loads(answers.read_text())
    return found


def _ask(log: Path, answers: Path) -> None:
    with one_process(log) as vllm:
        answers.write_text(json.dumps(vllm.answers(CASES)))
