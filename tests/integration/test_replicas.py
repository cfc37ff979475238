"""Two replicas of two stages behind one entry, under load, while a stage of one is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.adapters import RANK, random_adapter
from tests.integration.cases import CASES, PROMPTS
from tests.integration.entry import Entry, as_json, entry, zmqpp
from tests.integration.serving import FLAGS, NAME, long_only
from zmqpp.models import docs_llama

pytestmark = long_only

REPLICAS, STAGES = 2, 2
LORA = ("--enable-lora", "--max-lora-rank", str(2 * RANK))
DONE_S = 240.0
# With adapters enabled vLLM's own CPU code cannot compute logits of prompts.
ASKED = {name: body for name, body in CASES.items() if "prompt_logprobs" not in body}


@pytest.fixture(scope="module")
def alone(expected: dict[str, Any]) -> dict[str, Any]:
    """What one process answers to what is asked here."""
    return {name: expected[name] for name in ASKED}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    words = [str(docs_llama()), "--num-stages", str(STAGES), "--data-parallel-size", str(REPLICAS)]
    folder = tmp_path_factory.mktemp("replicas")
    try:
        with entry(folder, words, REPLICAS * (STAGES + 1) + REPLICAS, (*FLAGS, *LORA)) as running:
            running.await_state("ready")
            yield running
    finally:
        del os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]


def steps(replicas: Entry) -> list[int]:
    return [one["steps"] for one in replicas.status()["replicas"]]


def streamed(url: str, prompt: str) -> str:
    body = {"model": NAME, "prompt": prompt, "max_tokens": 120, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=DONE_S, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def test_both_answer_as_one_process_does(replicas: Entry, alone: dict[str, Any]) -> None:
    before = steps(replicas)
    assert replicas.served.answers(ASKED, at_once=16, timeout_s=DONE_S) == alone
    time.sleep(2.5)  # for the last reports
    done = [after - b for after, b in zip(steps(replicas), before, strict=True)]
    assert min(done) > 0.2 * max(done), done


@pytest.mark.parametrize("stage", [1, 0])
def test_a_stage_killed_under_load_costs_no_request(
    replicas: Entry, alone: dict[str, Any], stage: int
) -> None:
    """With stage 1, streams of that replica wait for it; with stage 0 they would break, so none run then."""
    calm = [streamed(replicas.url, prompt) for prompt in PROMPTS[:4]]
    before = replicas.status()
    answers: dict[str, Any] = {}
    asking = threading.Thread(
        target=lambda: answers.update(replicas.served.answers(ASKED, at_once=16, timeout_s=DONE_S))
    )
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(streamed, replicas.url, prompt) for prompt in PROMPTS[:4] if stage]
        time.sleep(0.5 if stage else 0)
        asking.start()
        time.sleep(0.5)
        pids = {(one["replica"], one["stage"]): one["pid"] for one in before["stages"]}
        os.kill(os.getsid(pids[1, stage]), signal.SIGKILL)  # the process that the launcher started
        away = replicas.await_state("degraded", restarts=before["restarts"] + 1, within_s=30)
        assert [one["state"] for one in away["replicas"]] == ["ready", "recovering"]
        health = httpx.get(f"{replicas.url}/health", timeout=10)
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert f"replica 1: the pipeline is recovering: stage {stage} was killed" in health.json()["reason"]
        asked = time.monotonic()
        replicas.served.complete({"prompt": PROMPTS[0], "max_tokens": 4})
        at_once_s = time.monotonic() - asked
        still_away = replicas.status()["state"] == "degraded"
        asking.join(DONE_S)
        assert answers == alone
        assert [stream.result() for stream in streams] == calm[: len(streams)]
    assert still_away and at_once_s < 60
    after = replicas.await_state("ready", restarts=before["restarts"] + 1)
    changed = {key for one in after["stages"] if pids[key := (one["replica"], one["stage"])] != one["pid"]}
    assert changed == {(1, stage)}


def test_status_metrics_trace_and_models_are_of_all(replicas: Entry, tmp_path: Path) -> None:
    replicas.served.answers(ASKED, at_once=16, timeout_s=DONE_S)  # a new stage 0 has counted nothing yet
    shown = zmqpp("status", replicas.url, "--once")
    assert shown.returncode == 0 and all(name in shown.stdout for name in ("0.0", "0.1", "1.0", "1.1"))
    text = httpx.get(f"{replicas.url}/metrics", timeout=20).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == sum(line.startswith("# TYPE ") for line in text.splitlines())
    tokens = {
        one.labels["replica"]: one.value
        for one in families["vllm:generation_tokens"].samples
        if one.name.endswith("total")
    }
    assert set(tokens) == {"0", "1"} and min(tokens.values()) > 0
    assert {one.labels["replica"] for one in families["zmqpp_stage_up"].samples} == {"0", "1"}
    assert len(httpx.get(f"{replicas.url}/v1/models", timeout=20).json()["data"]) == 1
    enough = threading.Event()

    def keep_asking(prompt: str) -> None:
        while not enough.is_set():
            streamed(replicas.url, prompt)

    with ThreadPoolExecutor(4) as pool:
        for prompt in PROMPTS[:4]:
            pool.submit(keep_asking, prompt)
        try:
            wanted = ("--seconds", "2", "-o", str(tmp_path / "trace.json"), "--json")
            summary = as_json(zmqpp("trace", replicas.url, *wanted))
        finally:
            enough.set()
    assert [stage["stage"] for stage in summary["stages"]] == ["0.0", "0.1", "1.0", "1.1"]
    assert all(stage["compute"] > 0 for stage in summary["stages"])


def test_an_adapter_is_loaded_by_all_and_unloaded_by_all(replicas: Entry, tmp_path: Path) -> None:
    random_adapter(tmp_path / "one", 1)
    loaded = {"lora_name": "one", "lora_path": str(tmp_path / "one")}
    assert httpx.post(f"{replicas.url}/v1/load_lora_adapter", json=loaded, timeout=60).status_code == 200
    body = {"model": "one", "prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0}
    with ThreadPoolExecutor(6) as pool:
        texts = {
            text["choices"][0]["text"]
            for text in pool.map(lambda _: replicas.served.complete(body), range(6))
        }
    assert len(texts) == 1
    gone = {"lora_name": "one"}
    assert httpx.post(f"{replicas.url}/v1/unload_lora_adapter", json=gone, timeout=60).status_code == 200
    codes = [
        httpx.post(f"{replicas.url}/v1/completions", json=body, timeout=60).status_code for _ in range(4)
    ]
    assert codes == [404] * 4


def test_stages_are_replaced_by_name_and_all_are_drained(replicas: Entry, alone: dict[str, Any]) -> None:
    before = {(one["replica"], one["stage"]): one["pid"] for one in replicas.status()["stages"]}
    done = zmqpp("restart", "--log-dir", str(replicas.log_dir), "--stage", "1.0", timeout_s=DONE_S)
    assert done.returncode == 0, done.stderr
    after = {(one["replica"], one["stage"]): one["pid"] for one in replicas.status()["stages"]}
    assert {key for key in after if after[key] != before[key]} == {(1, 0)}
    assert replicas.served.answers(ASKED, at_once=16, timeout_s=DONE_S) == alone
    done = zmqpp("drain", "--log-dir", str(replicas.log_dir), "--stop", timeout_s=DONE_S)
    assert done.returncode == 0, done.stderr
    assert replicas.process.wait(60) == 0
