"""Stages that hold one model in different forms: what travels is cast, answers are close, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.cases import LONG_PROMPT, PROMPTS
from tests.integration.models import int8_copy
from tests.integration.serving import long_only
from tests.integration.side_by_side import Found, one_process, stages
from tests.integration.zygote import Zygote
from zmqpp.models import docs_llama

pytestmark = long_only

_GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 0}
ONE_BY_ONE: dict[str, Any] = {
    "ask": [[{"prompt": prompt}, _GREEDY] for prompt in (*PROMPTS[:3], LONG_PROMPT[:800])],
    "max_num_seqs": 1,  # sums in bfloat16 depend on what else is in the batch
    "enable_prefix_caching": False,
}


@pytest.fixture(scope="module")
def exact(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All in float32, in one process."""
    folder = tmp_path_factory.mktemp("exact")
    found = one_process(imported, folder, docs_llama(), **dict(ONE_BY_ONE))
    imported.end_rest()
    return found


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_copy(docs_llama(), tmp_path_factory.mktemp("int8") / "model")


def prompt_logprobs(found: Found) -> list[float]:
    """Of each prompt's own tokens: they do not depend on what was generated before."""
    return [next(iter(at.values())) for one in found.answers for at in one["prompt_logprobs"]]


def away(found: Found, exact: Found) -> list[float]:
    pairs = zip(prompt_logprobs(found), prompt_logprobs(exact), strict=True)
    return [abs(here - there) for here, there in pairs]


def assert_close(found: Found, exact: Found, most: float, mean: float) -> None:
    differences = away(found, exact)
    assert len(differences) > 200
    assert 0 < max(differences) < most and sum(differences) / len(differences) < mean, differences


MIXED = {
    "bfloat16 before float32": ("bfloat16", "float32"),
    "float32 before bfloat16": ("float32", "bfloat16"),
    "float16 before bfloat16": ("float16", "bfloat16"),
}


@pytest.mark.parametrize("name", MIXED)
def test_stages_of_different_dtypes(name: str, zygote: Zygote, tmp_path: Path, exact: Found) -> None:
    first, second = MIXED[name]
    model = docs_llama()
    found = [
        stages(zygote, tmp_path, [model, model], flags=[["--dtype", second]], dtype=first, **dict(ONE_BY_ONE))
        for _ in range(2)
    ]
    assert found[0].answers == found[1].answers
    assert_close(found[0], exact, most=0.5, mean=0.05)
    wide = {"float32": 4}
    held = [load["bytes"] / load["parameters"] for load in found[0].loads]
    assert held == [wide.get(first, 2), wide.get(second, 2)]


@pytest.fixture(scope="module")
def all_int8(imported: Zygote, tmp_path_factory: pytest.TempPathFactory, int8: Path) -> Found:
    """All layers in int8, in one process."""
    found = one_process(imported, tmp_path_factory.mktemp("all"), int8, **dict(ONE_BY_ONE))
    imported.end_rest()
    return found


@pytest.mark.parametrize("which", [0, 1])
def test_one_stage_of_two_in_int8(
    which: int, zygote: Zygote, tmp_path: Path, exact: Found, int8: Path, all_int8: Found
) -> None:
    """Half as many rounded layers: nearer to the exact answers than a model that is rounded throughout."""
    models = [docs_llama(), docs_llama()]
    models[which] = int8
    found = [stages(zygote, tmp_path, models, **dict(ONE_BY_ONE)) for _ in range(2)]
    assert found[0].answers == found[1].answers
    rounded = away(all_int8, exact)
    assert_close(found[0], exact, most=2, mean=sum(rounded) / len(rounded))
    held = [load["bytes"] / load["parameters"] for load in found[0].loads]
    assert held[which] < 3 < held[1 - which] == 4


def test_both_stages_in_int8_say_what_one_process_says(
    zygote: Zygote, tmp_path: Path, int8: Path, all_int8: Found
) -> None:
    assert stages(zygote, tmp_path, [int8, int8], **dict(ONE_BY_ONE)).answers == all_int8.answers
