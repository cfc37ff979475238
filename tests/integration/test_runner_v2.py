"""Model Runner V2 over external stages, with and without async scheduling, under Triton's interpreter.

Greedy answers are those of one ordinary V1 process; V2 draws and rounds in ways of its own, so everything else is
compared with one ordinary V2 process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault.test_killed_stages import Load, await_ready, kill
from tests.integration.cases import CASES as ALL_CASES
from tests.integration.cases import PROMPTS
from tests.integration.serving import FLAGS, NAME, Served, long_only, one_process, pipeline
from zmqpp.vllm import compat, compat_v2

pytestmark = pytest.mark.skipif(
    compat.minor(compat.vllm_version()) not in compat_v2.SUPPORTED_VLLM,
    reason=f"V2 of vLLM {compat.vllm_version()} is refused, it is known in {', '.join(compat_v2.SUPPORTED_VLLM)}",
)

ROOT = Path(__file__).parents[2]
V2 = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "interpreter"))),
}
ASYNC = (*FLAGS, "--async-scheduling")
CASES = {name: body for name, body in ALL_CASES.items() if not {"top_k", "top_p"} & body.keys()}
"""The interpreter cannot run vLLM's kernel for top-k and top-p."""
GREEDY = {name: body for name, body in CASES.items() if name.startswith("greedy") or "prompt" in name}
SHAPES = {
    "2 stages": (2, FLAGS),
    "2 stages, async": (2, ASYNC),
    "3 stages": (3, FLAGS),
    "3 stages, async": (3, ASYNC),
}
SLOW_S = 300.0


def some(answers: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: answers[name] for name in names}


def test_two_stages_with_async_scheduling_answer_as_one_v1_process(
    expected: dict[str, Any], tmp_path: Path
) -> None:
    asked = [*(f"greedy {index}" for index in range(6)), "JSON schema", "stop string"]
    with pipeline(tmp_path / "logs", 2, flags=ASYNC, environment=V2) as served:
        assert served.answers(some(CASES, asked[:2]), timeout_s=SLOW_S) == some(expected, asked[:2])
        assert served.answers(some(CASES, asked), at_once=8, timeout_s=SLOW_S) == some(expected, asked)
    log = (tmp_path / "logs" / "stage_1.log").read_text()
    assert "Using V2 Model Runner" in log


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary V2 process answers."""
    with one_process(tmp_path_factory.mktemp("reference") / "vllm.log", environment=V2) as vllm:
        return vllm.answers(CASES, timeout_s=SLOW_S)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stages, flags = request.param
    logs = tmp_path_factory.mktemp("pipeline") / "logs"
    with pipeline(logs, stages, flags=flags, environment=V2) as served:
        yield served


@long_only
def test_the_reference_is_greedy_as_v1_is(alone: dict[str, Any], expected: dict[str, Any]) -> None:
    assert some(alone, GREEDY) == some(expected, GREEDY)


@long_only
def test_one_request_after_the_other_gives_the_same_answers(served: Served, alone: dict[str, Any]) -> None:
    assert served.answers(CASES, timeout_s=SLOW_S) == alone


@long_only
def test_sixteen_requests_at_once_give_the_same_answers(served: Served, alone: dict[str, Any]) -> None:
    assert served.answers(CASES, at_once=16, timeout_s=SLOW_S) == alone


@long_only
def test_a_client_that_leaves_does_not_disturb_the_others(served: Served, alone: dict[str, Any]) -> None:
    leaving = [threading.Thread(target=leave, args=(served, prompt)) for prompt in PROMPTS[:3]]
    for thread in leaving:
        thread.start()
    names = ("greedy 1", "seeded", "regex", "long prompt")
    assert served.answers(some(CASES, names), at_once=4, timeout_s=SLOW_S) == some(alone, names)
    for thread in leaving:
        thread.join()
    assert served.answers(some(CASES, names), at_once=4, timeout_s=SLOW_S) == some(alone, names)


def leave(served: Served, prompt: str) -> None:
    """Take a few tokens of many."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": 900, "temperature": 0, "ignore_eos": True}
    with httpx.stream(
        "POST", f"{served.url}/v1/completions", json={**body, "stream": True}, timeout=SLOW_S
    ) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)


@long_only
@pytest.mark.parametrize("delay_s", [0.7, 3.0])
def test_every_request_goes_on_after_stage_1_was_killed(
    served: Served, alone: dict[str, Any], delay_s: float
) -> None:
    load = Load(served, CASES, SLOW_S)
    time.sleep(delay_s)
    kill(served, 1)
    answers = load.wait()
    await_ready(served)
    assert answers == alone
    names = ("greedy 2", "seeded n=3", "JSON schema")
    assert served.answers(some(CASES, names), at_once=3, timeout_s=SLOW_S) == some(alone, names)


@long_only
def test_a_stage_lost_in_an_idle_moment_is_taken_back(served: Served, alone: dict[str, Any]) -> None:
    kill(served, 1)
    await_ready(served)
    names = ("greedy 3", "seeded min-p", "logprobs")
    assert served.answers(some(CASES, names), at_once=3, timeout_s=SLOW_S) == some(alone, names)


@long_only
def test_a_prompt_in_pieces_over_three_stages_with_async_scheduling(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    flags = [*ASYNC]
    flags[flags.index("--max-num-batched-tokens") + 1] = "48"
    names = ("long prompt", "prompt logprobs", "greedy 5", "seeded min-p", "regex", "penalties")
    with pipeline(tmp_path / "logs", 3, flags=flags, environment=V2) as served:
        assert served.answers(some(CASES, names), timeout_s=SLOW_S) == some(alone, names)
        assert served.answers(some(CASES, names), at_once=6, timeout_s=SLOW_S) == some(alone, names)


@long_only
@pytest.mark.parametrize("flags", [FLAGS, ASYNC], ids=["sync", "async"])
def test_stages_of_two_ranks_answer_as_one_process_also_after_a_kill(
    alone: dict[str, Any], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    names = (
        "greedy 0",
        "greedy 1",
        "seeded",
        "logprobs",
        "penalties",
        "regex",
        "long prompt",
        "prompt logprobs",
    )
    with pipeline(tmp_path / "logs", 2, flags=flags, environment=V2, ranks=(2, 2)) as served:
        assert served.answers(some(CASES, names), at_once=4, timeout_s=SLOW_S) == some(alone, names)
        load = Load(served, some(CASES, names), SLOW_S)
        time.sleep(3.0)
        kill(served, 1)
        assert load.wait() == some(alone, names)
        await_ready(served)
    log = (tmp_path / "logs" / "stage_0.log").read_text()
    assert log.count("requests go on") == 1, "another loss than the one that was made"
