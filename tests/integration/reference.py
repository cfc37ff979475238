"""What one ordinary vLLM process answers, and the zygote: fixtures of every test that needs them, wherever it lies."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import CASES
from tests.integration.serving import one_process
from tests.integration.zygote import Zygote


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def expected(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary vLLM process answers to `CASES`; asked once a run, by whichever worker comes first."""
    own = tmp_path_factory.mktemp("reference")
    shared = own.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    answers = shared / "expected.json"
    with (shared / "expected.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answers.exists():
            _ask(imported, own / "vllm.log", answers)
    found: dict[str, Any] = json.loads(answers.read_text())
    return found


def _ask(zygote: Zygote, log: Path, answers: Path) -> None:
    with one_process(log, zygote=zygote) as vllm:
        answers.write_text(json.dumps(vllm.answers(CASES)))
