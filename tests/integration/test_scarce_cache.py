"""A KV cache too small for what is asked: requests are preempted and computed again, in pieces, and nothing is lost."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.cases import LONG_PROMPT, PROMPTS
from tests.integration.serving import NAME, Served, essence, long_only, one_process, pipeline

pytestmark = long_only

STEP_TOKENS = 64
LENGTH = 100
COMMON = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32"),
    *("--max-num-batched-tokens", str(STEP_TOKENS), "--block-size", "32"),
)
AMPLE = (*COMMON, "--kv-cache-memory-bytes", str(128 << 20))
SCARCE = (*AMPLE, "--num-gpu-blocks-override", "34")
"""Room for one request of full length, or for eight of `CASES`."""
_BODY = {"max_tokens": LENGTH, "ignore_eos": True, "temperature": 0}
CASES: dict[str, dict[str, Any]] = {
    **{f"greedy {i}": {"prompt": prompt, **_BODY} for i, prompt in enumerate(PROMPTS)},
    **{
        f"seeded {i}": {"prompt": PROMPTS[i], **_BODY, "temperature": 0.8, "seed": 40 + i, "logprobs": 1}
        for i in range(4)
    },
    "several": {"prompt": PROMPTS[4], **_BODY, "temperature": 0.8, "seed": 3, "n": 3},
    "long": {"prompt": LONG_PROMPT, **_BODY},
}


@pytest.fixture(scope="module")
def expected_of_scarce(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process with room for all."""
    with one_process(tmp_path_factory.mktemp("reference") / "vllm.log", flags=AMPLE) as vllm:
        answers = vllm.answers(CASES)
        assert metric(vllm, "num_preemptions_total") == 0
        return answers


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(tmp_path_factory.mktemp("scarce") / "logs", 2, flags=SCARCE) as served:
        yield served


def metric(served: Served, name: str, labels: str = "") -> float:
    page = httpx.get(f"{served.url}/metrics", timeout=30).text
    found = re.findall(rf"^vllm:{name}\{{[^}}]*{labels}[^}}]*\}} (\S+)$", page, re.MULTILINE)
    assert found, f"no {name} in {page[-2000:]}"
    return sum(map(float, found))


def assert_at_rest(served: Served) -> None:
    deadline = time.monotonic() + 20
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    while any(left := [metric(served, name) for name in names]):
        assert time.monotonic() < deadline, dict(zip(names, left, strict=True))
        time.sleep(0.2)


def test_preempted_requests_say_what_they_would_have_said(
    scarce: Served, expected_of_scarce: dict[str, Any]
) -> None:
    before = metric(scarce, "num_preemptions_total")
    assert scarce.answers(CASES, at_once=len(CASES)) == expected_of_scarce
    assert metric(scarce, "num_preemptions_total") >= before + 5
    assert_at_rest(scarce)


def test_clients_that_leave_preempted_requests_leave_nothing_behind(
    scarce: Served, expected_of_scarce: dict[str, Any]
) -> None:
    begun: set[int] = set()
    leave = threading.Event()

    def ask_and_leave(number: int) -> int:
        """How many pieces of the answer came before this client left."""
        body = {"model": NAME, "prompt": f"{number} {PROMPTS[number % 16]}", **_BODY, "max_tokens": 900}
        pieces = 0
        with httpx.stream(
            "POST", f"{scarce.url}/v1/completions", json={**body, "stream": True}, timeout=60, verify=False
        ) as response:
            for _ in response.iter_lines():
                pieces += 1
                begun.add(number)
                if leave.is_set():
                    return pieces
        raise AssertionError("it ended by itself")

    with ThreadPoolExecutor(24) as pool:
        leaving = [pool.submit(ask_and_leave, number) for number in range(12)]
        # Not vLLM's count of preemptions: it hears of each when that request runs again.
        while len(begun) < len(leaving) or metric(scarce, "num_requests_waiting") < 4:
            assert not any(one.done() for one in leaving)
            time.sleep(0.05)
        some = {name: CASES[name] for name in ("greedy 1", "seeded 2", "several")}
        staying = pool.submit(scarce.answers, some, 3)
        time.sleep(0.5)
        assert metric(scarce, "num_requests_waiting") > 0, "none is preempted now"
        leave.set()
        # One that is preempted hears of nothing until it runs again: its connection is closed by the others' end.
        assert sum(one.result(60) > 0 for one in leaving) == len(leaving)
        assert staying.result(60) == {name: expected_of_scarce[name] for name in some}
    assert_at_rest(scarce)


def steps(served: Served) -> int:
    """Of stage 0, once it has told of the last one."""
    before, now = -1, 0
    while before != now:
        time.sleep(2.5)  # it reports every second
        before, now = now, httpx.get(f"{served.url}/pipeline/status", timeout=30).json()["stages"][0]["steps"]
    return now


def test_a_long_prompt_is_computed_in_pieces_and_kept(
    scarce: Served, expected_of_scarce: dict[str, Any]
) -> None:
    """An answer takes a step a token, the first of them the whole prompt's, were it not cut into pieces."""
    scarce.complete({"prompt": LONG_PROMPT[::-1], "max_tokens": 1})  # what is kept of others makes room
    counts, hits = [steps(scarce)], []
    for _ in range(2):
        hits.append(-metric(scarce, "prefix_cache_hits_total"))
        answer = scarce.complete(CASES["long"])
        assert essence(answer) == expected_of_scarce["long"]
        hits[-1] += metric(scarce, "prefix_cache_hits_total")
        counts.append(steps(scarce))
    prompt = answer["usage"]["prompt_tokens"]
    assert prompt > 5 * STEP_TOKENS
    assert counts[1] - counts[0] >= LENGTH - 1 + (prompt - hits[0]) // STEP_TOKENS
    assert counts[2] - counts[1] <= LENGTH + 1 and hits[1] >= prompt - 64
