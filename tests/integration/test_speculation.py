"""n-gram speculation over stages: the tokens of one process that does not speculate, fewer steps for them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault.test_killed_stages import Load, await_ready, kill
from tests.integration.cases import CASES
from tests.integration.serving import FLAGS, Served, long_only, pipeline
from tests.integration.test_runner_v2 import SLOW_S, V2

pytestmark = long_only

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SPECULATING = (*FLAGS, "--speculative-config", json.dumps(NGRAM))
NOT_WITH_DRAFTS = ("logit bias",)
"""vLLM refuses it with speculation."""
GREEDY = {
    name: case
    for name, case in CASES.items()
    if case["temperature"] == 0 and "structured_outputs" not in case and name not in NOT_WITH_DRAFTS
}
"""vLLM's CPU build does not speculate with sampled tokens."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(tmp_path_factory.mktemp("pipeline") / "logs", 3, flags=SPECULATING) as served:
        yield served


def accepted(served: Served) -> float:
    page = httpx.get(f"{served.url}/metrics", timeout=30).text
    found = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} ([\d.e+]+)$", page, re.MULTILINE)
    assert found, page[-2000:]
    return float(found[1])


def test_one_after_the_other_gives_the_same_tokens(served: Served, expected: dict[str, Any]) -> None:
    assert served.answers(GREEDY) == {name: expected[name] for name in GREEDY}
    assert accepted(served) > 10, "nothing was speculated"


def test_sixteen_at_once_give_the_same_tokens(served: Served, expected: dict[str, Any]) -> None:
    """Batches take turns on the ring: a request is left out of every other one, and must come back whole."""
    before = accepted(served)
    assert served.answers(GREEDY, at_once=16) == {name: expected[name] for name in GREEDY}
    assert accepted(served) > before + 10


def test_model_runner_v2_drafts_too_and_goes_on_after_a_loss(
    expected: dict[str, Any], tmp_path: Path
) -> None:
    """Its stages learn of several tokens a step, and of drafts that were rejected."""
    names = (
        "greedy 0",
        "greedy 1",
        "greedy 2",
        "stop string",
        "min tokens",
        "long prompt",
        "JSON schema",
        "regex",
    )
    some = {name: CASES[name] for name in names}
    wanted = {name: expected[name] for name in names}
    with pipeline(tmp_path / "logs", 3, flags=SPECULATING, environment=V2) as served:
        assert served.answers(some, timeout_s=SLOW_S) == wanted
        assert accepted(served) > 10, "nothing was speculated"
        assert served.answers(some, at_once=8, timeout_s=SLOW_S) == wanted
        load = Load(served, some, SLOW_S)
        time.sleep(2.0)
        kill(served, 1)
        assert load.wait() == wanted
        await_ready(served)
        assert served.answers(some, at_once=8, timeout_s=SLOW_S) == wanted
    assert "Using V2 Model Runner" in (tmp_path / "logs" / "stage_1.log").read_text()
