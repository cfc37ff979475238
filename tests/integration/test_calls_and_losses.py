"""Calls between requests, adapters above all, and what a stage that comes back afterwards is told of them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.adapters import RANK, random_adapters
from tests.integration.cases import PROMPTS
from tests.integration.serving import Served, pipeline
from tests.integration.zygote import Zygote

RUNNING = 3
FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", str(RUNNING)),
    *("--max-num-batched-tokens", "256", "--kv-cache-memory-bytes", str(64 << 20), "--block-size", "32"),
    *("--num-gpu-blocks-override", "18", "--scheduling-policy", "priority"),  # room for two long requests
    *("--enable-lora", "--max-loras", "4", "--max-lora-rank", str(2 * RANK)),
)
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
LONG = {"temperature": 0, "max_tokens": 240, "ignore_eos": True}
DONE_S = 150.0


@pytest.fixture(scope="module")
def served(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    logs = tmp_path_factory.mktemp("calls") / "logs"
    with pipeline(logs, 2, flags=FLAGS, environment=ENVIRONMENT, zygote=imported) as served:
        yield served


def post(served: Served, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body or {}, timeout=DONE_S, verify=False)


def load(served: Served, name: str, folder: Path) -> int:
    return post(served, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}).status_code


def text(served: Served, prompt: str = PROMPTS[0], **more: Any) -> str:
    found: str = served.complete({"prompt": prompt, **LONG, **more}, DONE_S)["choices"][0]["text"]
    return found


@contextmanager
def lost_stage_1(served: Served) -> Iterator[None]:
    """Killed; meanwhile it is missed, afterwards it is back."""
    launcher = served.launcher
    assert launcher is not None
    os.kill(launcher.pids()[1], signal.SIGKILL)
    yield
    launcher.restart_stage(1)
    deadline = time.monotonic() + DONE_S
    while not (launcher.lost_stages() == [] and launcher.all_ready()):
        assert time.monotonic() < deadline, launcher.states
        time.sleep(0.1)


def test_a_call_that_fails_before_the_first_request_is_its_callers_alone(
    served: Served, tmp_path: Path
) -> None:
    assert load(served, "none", tmp_path / "none") == 404
    assert post(served, "/collective_rpc", {"method": "no such"}).status_code >= 400
    assert len(text(served)) > LONG["max_tokens"]


def test_adapters_that_are_gone_stop_nobody_but_who_asks_for_them(served: Served, tmp_path: Path) -> None:
    folder = random_adapters(tmp_path / "adapters")
    assert [load(served, name, folder / name) for name in ("one", "two")] == [200, 200]
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "two"}).status_code == 200
    calm, adapted = text(served), text(served, model="one")
    assert adapted != calm
    shutil.rmtree(folder)
    with ThreadPoolExecutor(2) as pool:
        base: Future[str] = pool.submit(text, served)
        lost = pool.submit(post, served, "/v1/completions", {"model": "one", "prompt": PROMPTS[0], **LONG})
        time.sleep(0.3)
        with lost_stage_1(served):
            pass
        assert base.result(DONE_S) == calm
        assert lost.result(DONE_S).status_code == 500
    again = post(served, "/v1/completions", {"model": "one", "prompt": PROMPTS[0], **LONG})
    assert again.status_code == 500
    assert text(served) == calm
    random_adapters(folder)
    assert post(served, "/v1/unload_lora_adapter", {"lora_name": "one"}).status_code == 200
    assert load(served, "one", folder / "one") == 200
    assert text(served, model="one") == adapted


def test_a_stage_that_comes_back_while_the_others_sleep_sleeps_too(served: Served) -> None:
    assert served.log_dir is not None
    log = served.log_dir / "stage_1.log"
    calm = text(served)
    assert post(served, "/sleep?level=1").status_code == 200
    with lost_stage_1(served):
        pass
    assert (
        log.read_text().count("sleep mode is not supported on CPU") == 1
    )  # vLLM's word of having been called
    assert post(served, "/wake_up").status_code == 200
    with lost_stage_1(served):
        pass
    assert "sleep mode" not in log.read_text()
    assert text(served) == calm


def test_more_requests_than_run_at_a_time_go_on(served: Served) -> None:
    """Those of a higher priority have pushed others out of the cache, which are begun all the same."""
    asked = [(prompt, 9 - number // RUNNING) for number, prompt in enumerate(PROMPTS[: 3 * RUNNING])]
    calm = [text(served, prompt) for prompt, _ in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = []
        for number, (prompt, priority) in enumerate(asked):
            answers.append(pool.submit(text, served, prompt, priority=priority))
            time.sleep(0.4 if number % RUNNING == RUNNING - 1 else 0)
        assert not all(answer.done() for answer in answers)
        with lost_stage_1(served):
            pass
        assert [answer.result(DONE_S) for answer in answers] == calm
