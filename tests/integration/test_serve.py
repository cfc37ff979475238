"""`zmqpp export`, then `zmqpp serve`: one real pipeline behind the HTTP entry, watched in every way there is.

The tests of this file run in order on one pipeline; the last ones kill parts of it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.chromium import browser
from tests.browser.png import colours
from tests.integration.cases import CASES, PROMPTS
from tests.integration.entry import Entry, as_json, await_gone, entry, marked, zmqpp
from tests.integration.serving import NAME
from zmqpp.models import docs_llama

STAGES = 3
RANGES = ("0-2", "2-5", "5-8")
PARAMETERS = 3_935_424
"""Of the embedded model."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    folder = tmp_path_factory.mktemp("serve")
    made = zmqpp(
        "export", "--model", str(docs_llama()), "--pipeline-parallel-size", "3",
        *("--output-dir", str(folder / "split"), "--ranges", *RANGES),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "zmqpp serve --pipeline-dir" in made.stdout
    with entry(folder, ["--pipeline-dir", str(folder / "split")], STAGES) as running:
        yield running


@contextmanager
def load(pipeline: Entry, seconds: float) -> Iterator[None]:
    """Four clients that keep asking."""
    until = time.monotonic() + seconds

    def ask(number: int) -> None:
        while time.monotonic() < until:
            body = {"prompt": PROMPTS[number], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
            pipeline.served.complete(body)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        yield
        for one in asking:
            one.result()


def value_of(text: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no {name} {labels}")


def test_while_it_loads_the_entry_says_so_and_sends_clients_away(pipeline: Entry) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            health = httpx.get(f"{pipeline.url}/health", timeout=5)
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert health.status_code == 503 and health.json()["state"] == "starting"
    assert len(health.json()["stages"]) == STAGES
    refused = httpx.post(f"{pipeline.url}/v1/completions", json={"model": NAME, "prompt": "x"}, timeout=5)
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert "starting" in refused.json()["error"]["message"]
    assert httpx.get(f"{pipeline.url}/pipeline", timeout=5).status_code == 200


def test_answers_through_the_entry_are_those_of_one_process(
    pipeline: Entry, expected: dict[str, Any]
) -> None:
    pipeline.await_state("ready")
    assert httpx.get(f"{pipeline.url}/health", timeout=10).json() == {"status": "ok"}
    assert pipeline.served.answers(CASES, at_once=16) == expected


def test_an_answer_is_streamed_and_a_client_that_leaves_ends_its_request(pipeline: Entry) -> None:
    body = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{pipeline.url}/v1/completions", json=body, timeout=60) as response:
        pieces = response.iter_lines()
        first = json.loads(next(line for line in pieces if line.startswith("data: "))[6:])
        assert first["choices"][0]["text"] and first["choices"][0]["finish_reason"] is None
        text = httpx.get(f"{pipeline.url}/metrics", timeout=10).text
        assert value_of(text, "vllm:num_requests_running") == 1
    deadline = time.monotonic() + 20
    while value_of(httpx.get(f"{pipeline.url}/metrics", timeout=10).text, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "the request went on without its client"
        time.sleep(0.1)


def test_the_status_knows_every_stage(pipeline: Entry) -> None:
    with load(pipeline, 3.0):
        time.sleep(2.5)
        during = pipeline.status()
    assert during["tokens_per_s"] > 0 and 0 < during["bubble"] < 1 and during["steps"] > 0
    assert during["model"] == NAME and during["total_stages"] == STAGES and during["version"] == 1
    stages = during["stages"]
    assert [(s["layers"]["start"], s["layers"]["end"]) for s in stages] == [(0, 2), (2, 5), (5, 8)]
    assert sum(stage["parameters"] for stage in stages) == PARAMETERS
    assert [stage["link"]["lane"] for stage in stages] == ["shm", "shm", None]
    for stage in stages:
        assert stage["state"] == "ready" and stage["host"] and stage["device"] == "cpu"
        assert Path(f"/proc/{stage['pid']}").exists() and Path(stage["log"]).is_file()
        assert stage["memory"]["resident_bytes"] > 10**8 and stage["memory"]["kv_cache_bytes"] > 10**7
        assert stage["steps"] > 0 and stage["tokens"] >= stage["steps"] and stage["spent"]["compute_s"] > 0
        assert sum(stage["step_seconds"]["compute"]["counts"]) == stage["steps"]
        recent = stage["recent"]
        assert sum(recent[kind] for kind in ("compute", "wait", "send", "idle")) == pytest.approx(1, abs=0.01)
    assert stages[1]["spent"]["wait_s"] > 0 and stages[1]["link"]["dicts_received"] > 0
    assert stages[0]["link"]["bytes_sent"] > 10_000


def test_the_terminal_shows_the_same(pipeline: Entry) -> None:
    pipeline.await_state("ready")
    shown = zmqpp("status", pipeline.url, "--once")
    assert shown.returncode == 0, shown.stderr
    for word in ("2-5", "shm", "ready", NAME):
        assert word in shown.stdout
    assert as_json(zmqpp("status", pipeline.url, "--json"))["state"] == "ready"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (375, True)])
def test_the_page_shows_the_real_pipeline_and_streams_an_answer(
    pipeline: Entry, width: int, dark: bool
) -> None:
    pipeline.await_state("ready", restarts=pipeline.status()["restarts"])
    with browser() as chromium:
        chromium.open(f"{pipeline.url}/pipeline", width=width, dark=dark)
        chromium.wait("#state", "ready")
        assert chromium.text("#model") == NAME
        for layers in ("0-2 of 8", "2-5 of 8", "5-8 of 8"):
            chromium.wait("#stages", layers)
        assert "shm" in chromium.text("#stages") and "ready" in chromium.text("#events")
        chromium.write("#prompt", PROMPTS[0])
        chromium.write("#max", "24")
        chromium.click("#send")
        body = {"prompt": PROMPTS[0], "max_tokens": 24, "temperature": 0}
        answer = pipeline.served.complete(body)["choices"][0]["text"]
        chromium.wait("#said", "tokens", timeout_s=60)
        assert answer.split()[0] in chromium.text("#answer")
        assert colours(chromium.screenshot(f"real_pipeline_{width}")) > 8, "the page is blank"
        assert chromium.console() == [] and chromium.origins() == {pipeline.url}


def test_metrics_are_ours_beside_vllms(pipeline: Entry) -> None:
    text = httpx.get(f"{pipeline.url}/metrics", timeout=10).text
    direct = httpx.get(text_url(pipeline, "/metrics"), timeout=10).text
    for page in (text, direct):
        names = {family.name for family in text_string_to_metric_families(page)}
        assert {"vllm:num_requests_running"} < names
        assert any(name.startswith("zmqpp_stage_") for name in names)
        assert any(name.startswith("zmqpp_link_") for name in names)


def text_url(pipeline: Entry, path: str) -> str:
    """Of stage 0's own server, whose port is the next one."""
    host, _, port = pipeline.url.rpartition(":")
    return f"{host}:{int(port) + 1}{path}"


def test_stage_0_alone_shows_the_status_and_the_page_too(pipeline: Entry) -> None:
    status = httpx.get(text_url(pipeline, "/pipeline/status"), timeout=10).json()
    assert status["state"] == "ready" and len(status["stages"]) == STAGES
    page = httpx.get(text_url(pipeline, "/pipeline"), timeout=10)
    assert (
        page.status_code == 200 and page.content == httpx.get(f"{pipeline.url}/pipeline", timeout=10).content
    )


def test_a_trace_shows_every_stage_on_one_clock(pipeline: Entry, tmp_path: Path) -> None:
    pipeline.await_state("ready")
    with load(pipeline, 3.0):
        done = zmqpp("trace", pipeline.url, "--seconds", "1.5", "-o", str(tmp_path / "trace.json"), "--json")
    summary = as_json(done)
    assert summary["steps"] > 0 and summary["seconds"] >= 1.5
    for clock in summary["clocks"]:  # One machine here, so the truth is known: the estimate must include it.
        assert clock["same_clock"] and clock["offset_us"] == 0
    trace = json.loads((tmp_path / "trace.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    by_stage = {pid: [s for s in spans if s["pid"] == pid] for pid in range(STAGES + 1)}
    for stage in range(1, STAGES + 1):
        assert {"compute"} <= {span["cat"] for span in by_stage[stage]}
        own = sorted(by_stage[stage], key=lambda span: span["ts"])
        ends = [span["ts"] + span["dur"] for span in own]
        assert all(end <= after["ts"] + 1 for end, after in zip(ends, own[1:], strict=False))
    left = {event["id"]: event["ts"] for event in trace["traceEvents"] if event["ph"] == "s"}
    came = {event["id"]: event["ts"] for event in trace["traceEvents"] if event["ph"] == "f"}
    assert left.keys() == came.keys() and len(left) >= STAGES - 1
    assert all(left[hop] <= came[hop] for hop in left), "activations that came before they were sent"
    refused = zmqpp("trace", pipeline.url, "--seconds", "100", "-o", str(tmp_path / "t.json"))
    assert refused.returncode == 2 and "at most 60" in refused.stderr and not (tmp_path / "t.json").exists()


def test_a_killed_stage_is_replaced_and_no_request_is_lost(pipeline: Entry, expected: dict[str, Any]) -> None:
    before = pipeline.status()
    answers: dict[str, Any] = {}
    under_way = threading.Thread(target=lambda: answers.update(pipeline.served.answers(CASES, at_once=16)))
    under_way.start()
    time.sleep(0.5)
    os.kill(before["stages"][1]["pid"], signal.SIGKILL)
    pipeline.await_state("recovering", restarts=1, within_s=30)
    health = httpx.get(f"{pipeline.url}/health", timeout=5)
    assert (health.status_code, health.json()["status"]) == (503, "degraded")
    assert "stage 1 was killed by SIGKILL" in health.json()["reason"]
    under_way.join(120)
    assert answers == expected
    after = pipeline.await_state("ready", restarts=1)
    kinds = [event["kind"] for event in after["events"]]
    assert kinds.index("lost") < kinds.index("restarting") < kinds.index("recovered")
    changed = [a["pid"] != b["pid"] for a, b in zip(before["stages"], after["stages"], strict=True)]
    assert changed == [index == 1 for index in range(STAGES)]
    assert "recovered" in pipeline.output.read_text()


def test_nothing_outlives_a_killed_launcher(pipeline: Entry) -> None:
    assert len(marked(str(pipeline.log_dir))) > STAGES
    pipeline.process.kill()
    pipeline.process.wait()
    assert not await_gone(str(pipeline.log_dir))
