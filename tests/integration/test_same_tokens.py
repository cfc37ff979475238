"""Pipelines of 2, 3 and 4 stages answer as one ordinary vLLM process does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES, PROMPTS
from tests.integration.serving import NAME, Served, pipeline
from tests.integration.zygote import Zygote

SHAPES = {
    "2 stages, even": (2, ""),
    "3 stages, uneven": (3, "0-1 1-6 6-8"),
    "4 stages, even": (4, ""),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def served(
    request: pytest.FixtureRequest, imported: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    stages, ranges = request.param
    with pipeline(tmp_path_factory.mktemp("pipeline") / "logs", stages, ranges, zygote=imported) as served:
        yield served


def test_one_request_after_the_other_gives_the_same_answers(served: Served, expected: dict[str, Any]) -> None:
    assert served.answers(CASES) == expected


def test_sixteen_requests_at_once_give_the_same_answers(served: Served, expected: dict[str, Any]) -> None:
    assert served.answers(CASES, at_once=16) == expected


def test_a_stream_gives_the_same_text_piece_by_piece(served: Served, expected: dict[str, Any]) -> None:
    body = {"model": NAME, **CASES["greedy 0"], "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    pieces = [re.search(r'"text":"((?:[^"\\]|\\.)*)"', line) for line in lines]
    text = "".join(piece[1].encode().decode("unicode_escape") for piece in pieces if piece)
    assert text == expected["greedy 0"][0]["text"]
    assert len(lines) > 8, "not piece by piece"  # vLLM joins pieces that come while its server is busy


def test_a_client_that_leaves_does_not_disturb_the_others(served: Served, expected: dict[str, Any]) -> None:
    body = {
        "model": NAME,
        "prompt": PROMPTS[0],
        "max_tokens": 900,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    for _ in range(3):
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
            next(response.iter_lines())
    some = {name: CASES[name] for name in ("greedy 1", "seeded", "regex")}
    assert served.answers(some, at_once=3) == {name: expected[name] for name in some}


def test_each_stage_says_what_it_holds_and_holds_nothing_else(served: Served) -> None:
    assert served.launcher is not None and served.log_dir is not None
    parameters = []
    for state in served.launcher.states:
        log = (served.log_dir / f"stage_{state.index}.log").read_text()
        found = re.search(
            rf"stage {state.index}: layers (\d+)-(\d+) of 8, ([\d,]+) parameters, [\d.]+ [MG]B, loaded in",
            log,
        )
        assert found, log[-2000:]
        parameters.append(int(found[3].replace(",", "")))
    # As many as model.safetensors holds: nothing is held twice, nothing is left out.
    assert sum(parameters) == 3_935_424
