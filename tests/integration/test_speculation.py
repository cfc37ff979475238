"""n-gram speculation over stages: the tokens of one process that does not speculate, fewer steps for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES
from tests.integration.serving import FLAGS, Served, long_only, pipeline

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
