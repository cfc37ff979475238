"""Calls between requests, adapters above all, and what a stage that comes back afterwards is told of them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.integration.adapters import RANK, random_adapters
from tests.integration.cases import PROMPTS
from tests.integration.serving import NAME, Served, long_only, pipeline
from tests.integration.zygote import Zygote

RUNNING = 3
FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", str(RUNNING)),
    *("--max-num-batched-tokens", "256", "--kv-cache-memory-bytes", str(64 << 20), "--block-size", "32"),
    *(
        "--num-gpu-blocks-override",
        "18",
        "--scheduling-policy",
        "priority",
    ),  # room for two that are asked here
    *("--enable-lora", "--max-loras", "6", "--max-lora-rank", str(2 * RANK)),
)
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
ROOMY = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "256", "--kv-cache-memory-bytes", str(64 << 20)),
)
LONG = {"temperature": 0, "max_tokens": 240, "ignore_eos": True}
DONE_S = 150.0
HIDDEN = 192


@pytest.fixture(scope="module")
def served(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    logs = tmp_path_factory.mktemp("calls") / "logs"
    with pipeline(logs, 2, flags=FLAGS, environment=ENVIRONMENT, zygote=imported) as served:
        yield served


def post(served: Served, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body or {}, timeout=DONE_S, verify=False)


def load(served: Served, name: str, folder: Path) -> int:
    return post(served, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}).status_code


def embeddings(rows: int, seed: int) -> str:
    found = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
    written = io.BytesIO()
    torch.save(found, written)
    return base64.b64encode(written.getvalue()).decode()


def text(served: Served, prompt: str | None = PROMPTS[0], **more: Any) -> str:
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


def streamed(served: Served, prompt: str, begun: threading.Event, **more: Any) -> str:
    body = {"model": NAME, "prompt": prompt, "stream": True, **LONG, **more}
    found = ""
    with httpx.stream(
        "POST", f"{served.url}/v1/completions", json=body, timeout=DONE_S, verify=False
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                found += json.loads(line[6:])["choices"][0]["text"]
                begun.set()
    return found


def test_more_requests_than_run_at_a_time_go_on(served: Served) -> None:
    """The cache holds none of them whole: one has to make room before the first of a higher priority begins."""
    calm = [text(served, prompt) for prompt in PROMPTS[: 2 * RUNNING]]
    with ThreadPoolExecutor(len(calm)) as pool:
        low, high = [threading.Event() for _ in range(RUNNING)], threading.Event()
        answers = [pool.submit(streamed, served, PROMPTS[i], low[i], priority=9) for i in range(RUNNING)]
        assert all(event.wait(DONE_S) for event in low)
        others = PROMPTS[RUNNING : 2 * RUNNING]
        answers += [pool.submit(streamed, served, prompt, high, priority=5) for prompt in others]
        assert high.wait(DONE_S) and not any(answer.done() for answer in answers)
        with lost_stage_1(served):
            pass
        assert [answer.result(DONE_S) for answer in answers] == calm
    assert served.log_dir is not None
    went_on = re.findall(r"(\d+) requests go on", (served.log_dir / "stage_0.log").read_text())
    assert int(went_on[-1]) > RUNNING


def test_a_server_whose_engine_was_killed_is_replaced_at_once(served: Served, tmp_path: Path) -> None:
    """Its adapters go with it: the next one counts its own from 1, as it did, and the other stages stayed."""
    launcher = served.launcher
    assert launcher is not None and served.log_dir is not None
    folder = random_adapters(tmp_path / "adapters")
    assert [load(served, name, folder / name) for name in ("three", "two")] == [200, 200]
    calm, adapted = text(served), text(served, model="two")
    assert adapted != calm
    server = Path(f"/proc/{launcher.pids()[0]}")
    children = (server / "task" / server.name / "children").read_text().split()
    [engine] = [pid for pid in children if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(engine), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while launcher.lost_stages() != [0]:
        assert time.monotonic() < deadline, launcher.states
        time.sleep(0.05)
    assert launcher.was_killed(0)
    assert "the engine of stage 0 was killed by SIGKILL" in (served.log_dir / "stage_0.log").read_text()
    launcher.restart_stage(0)
    launcher.wait_ready(DONE_S)
    assert text(served) == calm
    assert load(served, "two", folder / "two") == 200
    assert text(served, model="two") == adapted


def test_a_call_that_one_stage_missed_is_made_again(served: Served) -> None:
    """It stands still until it is given up: without it, half of the stages would sleep, and vLLM think none does."""
    assert served.launcher is not None and served.log_dir is not None
    calm, log = text(served), served.log_dir / "stage_1.log"
    heard = log.read_text().count("sleep mode is not supported on CPU")  # vLLM's word of having been called
    with ThreadPoolExecutor(1) as pool, stopped_stage_1(served):
        called = pool.submit(post, served, "/sleep?level=1")
        await_loss(served)
    assert called.result(DONE_S).status_code == 200, called.result().text
    assert httpx.get(f"{served.url}/is_sleeping", timeout=30).json() == {"is_sleeping": True}
    assert log.read_text().count("sleep mode is not supported on CPU") == heard + 1
    assert post(served, "/wake_up").status_code == 200
    assert text(served) == calm


@contextmanager
def stopped_stage_1(served: Served) -> Iterator[None]:
    """Meanwhile it stands still."""
    assert served.launcher is not None
    pid = served.launcher.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def await_loss(served: Served) -> None:
    deadline = time.monotonic() + DONE_S
    while httpx.get(f"{served.url}/health", timeout=30).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@long_only
def test_requests_that_no_message_holds_together_are_answered(imported: Zygote, tmp_path: Path) -> None:
    """Held back until all are there, so that one step would bring them."""
    flags = (*ROOMY, "--enable-prompt-embeds")
    small = {**ENVIRONMENT, "ZMQPP_MAX_CONTROL_BYTES": "150000"}
    with pipeline(tmp_path / "logs", 2, flags=flags, environment=small, zygote=imported) as served:
        asked = [{"prompt": None, "prompt_embeds": embeddings(20, seed)} for seed in range(14)]
        calm = [text(served, **body) for body in asked]
        assert (
            post(served, "/v1/completions", {**LONG, "prompt_embeds": embeddings(40, 1)}).status_code == 500
        )
        assert post(served, "/pause?mode=keep").status_code == 200
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [pool.submit(text, served, **body) for body in asked]
            time.sleep(1.5)
            assert post(served, "/resume").status_code == 200
            assert [answer.result(DONE_S) for answer in answers] == calm
        assert "its new requests go in steps of" in (tmp_path / "logs" / "stage_0.log").read_text()
