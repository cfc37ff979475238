"""Another architecture: tied embeddings, several shards, stages of unequal size, and exported stage directories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import CASES
from tests.integration.models import tiny_qwen3
from tests.integration.serving import Served, one_process, pipeline
from tests.integration.zygote import Zygote

SOME = {name: CASES[name] for name in CASES if not name.startswith("greedy") or name[-1] in "0123"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3") / "model")


@pytest.fixture(scope="module")
def expected_of_qwen3(
    model: Path, imported: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    log = tmp_path_factory.mktemp("reference") / "vllm.log"
    with one_process(log, model, zygote=imported) as vllm:
        return vllm.answers(SOME)


@pytest.fixture(scope="module")
def served(model: Path, imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    logs = tmp_path_factory.mktemp("pipeline") / "logs"
    with pipeline(logs, 2, "0-3 3-5", model, zygote=imported) as served:
        yield served


def test_qwen3_gives_the_same_answers(served: Served, expected_of_qwen3: dict[str, Any]) -> None:
    assert served.answers(SOME) == expected_of_qwen3


def test_qwen3_gives_the_same_answers_at_once(served: Served, expected_of_qwen3: dict[str, Any]) -> None:
    assert served.answers(SOME, at_once=16) == expected_of_qwen3
