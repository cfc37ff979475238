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
from tests.integration.serving import FLAGS, Served, long_only, one_process, pipeline
from tests.integration.test_runner_v2 import SLOW_S, V2
from zmqpp.vllm import compat, compat_v2

pytestmark = [
    long_only,
    pytest.mark.skipif(
        not compat.can_accept_drafts(),
        reason=f"vLLM {compat.vllm_version()} cannot speculate where Triton has no driver, not even in one process",
    ),
]

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


REPEATING = {
    text[:6]: {"prompt": text, "temperature": 0, "max_tokens": 64, "ignore_eos": True}
    for text in ("1, 2, 3, " * 4 + "1, 2,", ">>> x\n" * 6, "." * 22, "0" * 19)
}
"""Whoever repeats himself is easily foretold: of these V1 accepted 103 drafts."""
UNDER_A_GRAMMAR = {
    "repeating, by order": {
        "prompt": "ab ab ab",
        "temperature": 0,
        "max_tokens": 60,
        "structured_outputs": {"regex": "(ab ){12}"},
    }
}
ASKED = REPEATING | UNDER_A_GRAMMAR
MANY = 60
"""Of all that Model Runner V2 is asked here."""
WITH_V2 = (
    *(f"greedy {i}" for i in range(3)),
    "stop string",
    "min tokens",
    "long prompt",
    "JSON schema",
    "regex",
)
WITH_RANKS = ("greedy 0", "greedy 1", "stop string", "JSON schema", "long prompt")
needs_v2 = pytest.mark.skipif(
    compat.minor(compat.vllm_version()) not in compat_v2.SUPPORTED_VLLM,
    reason=f"V2 of vLLM {compat.vllm_version()} is refused",
)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one ordinary process answers to ASKED."""
    with one_process(tmp_path_factory.mktemp("repeating") / "vllm.log") as vllm:
        return vllm.answers(ASKED)


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


def test_stages_of_several_ranks_give_the_same_tokens(expected: dict[str, Any], tmp_path: Path) -> None:
    with pipeline(tmp_path / "logs", 2, flags=SPECULATING, ranks=(2, 2)) as served:
        assert served.answers(GREEDY, at_once=8) == {name: expected[name] for name in GREEDY}
        assert accepted(served) > 10, "nothing was speculated"


@needs_v2
@pytest.mark.parametrize(
    ("method", "flags"),
    [("ngram", ()), ("ngram_gpu", ("--async-scheduling",))],
    ids=["ngram", "ngram_gpu, async"],
)
def test_model_runner_v2_drafts_too_and_goes_on_after_a_loss(
    method: str, flags: tuple[str, ...], expected: dict[str, Any], repeated: dict[str, Any], tmp_path: Path
) -> None:
    """Its stages learn of several tokens a step, and of drafts that were rejected."""
    some = {name: CASES[name] for name in WITH_V2} | ASKED
    wanted = {name: expected[name] for name in WITH_V2} | repeated
    flags = (*FLAGS, *flags, "--speculative-config", json.dumps({**NGRAM, "method": method}))
    with pipeline(tmp_path / "logs", 3, flags=flags, environment=V2) as served:
        assert served.answers(some, timeout_s=SLOW_S) == wanted
        alone = accepted(served)
        assert alone > MANY, "little was speculated"
        assert served.answers(some, at_once=13, timeout_s=SLOW_S) == wanted
        assert accepted(served) > alone + MANY
        before = accepted(served)
        assert served.answers(UNDER_A_GRAMMAR, timeout_s=SLOW_S) == {
            name: repeated[name] for name in UNDER_A_GRAMMAR
        }
        assert accepted(served) > before, "requests under a grammar do not speculate"
        load = Load(served, some, SLOW_S)
        time.sleep(2.0)
        kill(served, 1)
        assert load.wait() == wanted
        await_ready(served)
        before = accepted(served)
        assert served.answers(some, at_once=13, timeout_s=SLOW_S) == wanted
        assert accepted(served) > before + MANY, "nothing was speculated after the loss"
    assert "Using V2 Model Runner" in (tmp_path / "logs" / "stage_1.log").read_text()
    assert "requests go on" in (tmp_path / "logs" / "stage_0.log").read_text(), "nothing was lost"


@needs_v2
@pytest.mark.parametrize(
    ("method", "flags", "ranks"),
    [("ngram", (), (2, 1)), ("ngram", (), (1, 2)), ("ngram_gpu", ("--async-scheduling",), (2, 2))],
    ids=["ngram, 2 and 1", "ngram, 1 and 2", "ngram_gpu, async, 2 and 2"],
)
def test_stages_of_several_ranks_draft_with_model_runner_v2(
    method: str,
    flags: tuple[str, ...],
    ranks: tuple[int, ...],
    expected: dict[str, Any],
    repeated: dict[str, Any],
    tmp_path: Path,
) -> None:
    """All ranks of the last stage draw and draft the same; those of the others are told of it with the step."""
    some = {name: CASES[name] for name in WITH_RANKS} | ASKED
    wanted = {name: expected[name] for name in WITH_RANKS} | repeated
    flags = (*FLAGS, *flags, "--speculative-config", json.dumps({**NGRAM, "method": method}))
    with pipeline(tmp_path / "logs", 2, flags=flags, environment=V2, ranks=ranks) as served:
        assert served.answers(some, timeout_s=SLOW_S) == wanted
        alone = accepted(served)
        assert alone > MANY, "little was speculated"
        load = Load(served, some, SLOW_S)
        time.sleep(3.0)
        kill(served, 1)
        assert load.wait() == wanted
        await_ready(served)
        assert accepted(served) > alone + MANY
    log = (tmp_path / "logs" / "stage_0.log").read_text()
    assert log.count("requests go on") == 1, "another loss than the one that was made"
