"""A model that looks at images, over two stages: the answers of one process, to chat requests with pictures in them."""

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

from tests.integration.images import LAYERS, question, tiny_blip2
from tests.integration.models import split
from tests.integration.serving import NAME, Served, long_only, one_process, pipeline

pytestmark = long_only

FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"),
    *("--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", str(64 << 20)),
)
TEXTS = ("What is this?", "The list type in Python", "Return the number of")
ASKED = [(seed, text) for text in TEXTS for seed in (None, 1, 2, 3)]


def answers(served: Served, at_once: int, times: int = 1) -> list[Any]:
    """Texts and logprobs of all that is asked, `times` times over."""

    def ask(one: tuple[int | None, str]) -> Any:
        body = {"model": NAME, **question(*one), "logprobs": True}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120, verify=False)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        tokens = [(token["token"], round(token["logprob"], 2)) for token in choice["logprobs"]["content"]]
        return choice["message"]["content"], tokens

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, ASKED * times))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip2(tmp_path_factory.mktemp("images") / "model")


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with one_process(tmp_path_factory.mktemp("reference") / "vllm.log", model, FLAGS) as vllm:
        return answers(vllm, 1)


@pytest.fixture(scope="module", params=["the model", "its export"])
def served(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pipeline")
    folders = [model] * 2 if request.param == "the model" else split(model, folder, [(0, 3), (3, LAYERS)])
    with pipeline(folder / "logs", 2, flags=FLAGS, models=folders) as served:
        yield served


def test_pictures_change_what_is_said(alone: list[Any]) -> None:
    assert len({text for text, _ in alone}) == len(ASKED)


@pytest.mark.parametrize("at_once", [1, 6])
def test_stages_say_what_one_process_says(served: Served, alone: list[Any], at_once: int) -> None:
    assert answers(served, at_once) == alone


@pytest.mark.parametrize("stage", [1, 0])
def test_a_stage_killed_while_pictures_are_looked_at_costs_no_request(
    served: Served, alone: list[Any], stage: int
) -> None:
    """Stage 0 encodes the pictures, and its own process is replaced by the engine; stage 1 by the launcher."""
    assert served.launcher is not None
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(answers, served, 6, 12)
        time.sleep(1)
        before = status(served)
        os.kill(before["stages"][stage]["pid"], signal.SIGKILL)
        if stage:
            served.launcher.restart_stage(stage)
        assert not asking.done()
        assert asking.result(240) == alone * 12
    after = status(served)
    assert after["losses"] == before["losses"] + 1
    assert after["stages"][stage]["pid"] != before["stages"][stage]["pid"]


def status(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/pipeline/status", timeout=30).json()
    return found
