"""A pooling model over external stages: the vectors of one process, also when a stage is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.cases import PROMPTS
from tests.integration.serving import FLAGS, NAME, Served, one_process, pipeline
from tests.integration.zygote import Zygote

POOLING = (*FLAGS, "--runner", "pooling", "--convert", "embed")
TEXTS = [f"{prompt} {number}" for number in range(4) for prompt in PROMPTS]


def vectors(served: Served, times: int = 1) -> list[list[list[float]]]:
    """Each text's, `times` times over, sixteen at once."""

    def ask(text: str) -> list[float]:
        body = {"model": NAME, "input": text}
        answer = httpx.post(f"{served.url}/v1/embeddings", json=body, timeout=120, verify=False)
        answer.raise_for_status()
        return [round(value, 4) for value in answer.json()["data"][0]["embedding"]]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, TEXTS * times))
    return [found[i : i + len(TEXTS)] for i in range(0, len(found), len(TEXTS))]


@pytest.fixture(scope="module")
def expected_vectors(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    with one_process(
        tmp_path_factory.mktemp("reference") / "vllm.log", flags=POOLING, zygote=imported
    ) as vllm:
        return vectors(vllm)[0]


@pytest.fixture(scope="module")
def served(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(
        tmp_path_factory.mktemp("embeddings") / "logs", 2, flags=POOLING, zygote=imported
    ) as served:
        yield served


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-4)


def test_stages_give_the_vectors_of_one_process(served: Served, expected_vectors: list[list[float]]) -> None:
    assert_close(vectors(served)[0], expected_vectors)


def test_no_vector_is_lost_with_a_stage(served: Served, expected_vectors: list[list[float]]) -> None:
    launcher = served.launcher
    assert launcher is not None
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(vectors, served, 12)
        time.sleep(0.3)
        os.kill(launcher.pids()[1], signal.SIGKILL)
        launcher.restart_stage(1)
        assert not asking.done()
        for found in asking.result(120):
            assert_close(found, expected_vectors)
