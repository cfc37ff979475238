"""Stages of two tensor-parallel ranks with adapters, as a pooling model and compiled: what one process does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.adapters import RANK, random_adapters
from tests.integration.cases import CASES, PROMPTS
from tests.integration.serving import FLAGS, NAME, Served, long_only, one_process, pipeline
from tests.integration.test_embeddings import POOLING, assert_close, vectors
from tests.integration.test_tensor_parallel import second_rank

pytestmark = long_only

RANKS = (2, 2)
COMES_AND_GOES = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
COMPILED = tuple(word for word in FLAGS if word != "--enforce-eager")
GREEDY = {name: CASES[name] for name in ("greedy 0", "greedy 1", "greedy 2", "greedy 3", "long prompt")}
READY_S = 900
"""Four processes compile, on how few cores there may be."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def with_adapters(adapters: Path) -> tuple[str, ...]:
    named = [f"{name}={adapters / name}" for name in ("one", "two")]
    # One place more than adapters: vLLM's CPU kernels apply the last one's to requests without any that share a batch.
    lora = ("--enable-lora", "--max-loras", "4", "--max-lora-rank", str(2 * RANK))
    return (*FLAGS, *lora, "--lora-modules", *named)


@pytest.fixture(scope="module")
def said_alone(
    adapters: Path, with_adapters: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    log = tmp_path_factory.mktemp("reference") / "vllm.log"
    with one_process(log, flags=with_adapters, environment=COMES_AND_GOES) as vllm:
        load(vllm, adapters)
        return said(vllm)


@pytest.fixture
def served(with_adapters: tuple[str, ...], tmp_path: Path) -> Iterator[Served]:
    with pipeline(
        tmp_path / "logs", 2, flags=with_adapters, environment=COMES_AND_GOES, ranks=RANKS
    ) as served:
        yield served


def load(served: Served, adapters: Path) -> None:
    body = {"lora_name": "three", "lora_path": str(adapters / "three")}
    answer = httpx.post(f"{served.url}/v1/load_lora_adapter", json=body, timeout=120, verify=False)
    assert answer.status_code == 200, answer.text


def said(served: Served) -> dict[str, list[str]]:
    """By the model and by each adapter, all at once."""
    names = (NAME, "one", "two", "three")
    asked = [(name, prompt) for name in names for prompt in PROMPTS[:3]]

    def ask(one: tuple[str, str]) -> str:
        body = {"model": one[0], "prompt": one[1], "temperature": 0, "max_tokens": 32, "ignore_eos": True}
        return str(served.complete(body)["choices"][0]["text"])

    with ThreadPoolExecutor(len(asked)) as pool:
        texts = list(pool.map(ask, asked))
    return {name: texts[3 * i : 3 * i + 3] for i, name in enumerate(names)}


def test_adapters_on_every_rank_also_on_those_that_come_back(
    served: Served, adapters: Path, said_alone: dict[str, list[str]]
) -> None:
    assert len({str(texts) for texts in said_alone.values()}) == len(said_alone), "adapters change nothing"
    load(served, adapters)
    assert said(served) == said_alone
    assert served.launcher is not None
    victim = second_rank(served, 1)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(said, served)
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while served.launcher.runs(1) and time.monotonic() < deadline:
            time.sleep(0.1)
        served.launcher.restart_stage(1)
        assert not asking.done()
        assert asking.result(180) == said_alone
    assert second_rank(served, 1) != victim


def test_vectors_of_a_pooling_model(tmp_path: Path) -> None:
    with one_process(tmp_path / "vllm.log", flags=POOLING) as vllm:
        expected = vectors(vllm)[0]
    with pipeline(tmp_path / "logs", 2, flags=POOLING, ranks=RANKS) as served:
        assert_close(vectors(served)[0], expected)


@pytest.mark.timeout(2 * READY_S)
def test_compiled_ranks_say_what_one_compiled_process_says(tmp_path: Path) -> None:
    with one_process(tmp_path / "vllm.log", flags=COMPILED) as vllm:
        expected: dict[str, Any] = vllm.answers(GREEDY, at_once=4)
    with pipeline(tmp_path / "logs", 2, flags=COMPILED, ranks=RANKS, ready_s=READY_S) as served:
        assert served.answers(GREEDY, at_once=4) == expected
