"""What one ordinary vLLM process answers: the fixture of every test that compares with it, wherever it lies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.cases import CASES
from tests.integration.serving import one_process


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary vLLM process answers to `CASES`."""
    with one_process(tmp_path_factory.mktemp("reference") / "vllm.log") as vllm:
        return vllm.answers(CASES)
