"""Stages run one model runner: stage 0's word, vLLM's default, and what only V1 does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

import vllm.triton_utils

from zmqpp.errors import ConfigError, UnsupportedError
from zmqpp.vllm import compat, runner_choice
from zmqpp.vllm.runner_choice import (
    VARIABLE,
    adopt_runner,
    check_runner,
    forget_adopted,
    prefer_runner,
    runner_of,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with Triton, a vLLM whose V2 is known, and a variable that is put back."""
    monkeypatch.setattr(vllm.triton_utils, "HAS_TRITON", True)
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(runner_choice, "_adopted", False)
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE)
    yield


def arguments(**more: Any) -> Any:
    return SimpleNamespace(**{"async_scheduling": None, **more})


def config(v2: bool, asynchronous: bool = False) -> Any:
    return SimpleNamespace(
        use_v2_model_runner=v2, scheduler_config=SimpleNamespace(async_scheduling=asynchronous)
    )


def test_where_nothing_speaks_against_it_vllm_chooses() -> None:
    prefer_runner()
    assert VARIABLE not in os.environ


def test_without_triton_or_with_another_vllm_it_is_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.31.0")
    prefer_runner()
    assert os.environ[VARIABLE] == "0"
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(UnsupportedError, match=rf"vLLM 0\.31\.0.*{VARIABLE}=0"):
        prefer_runner()
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(vllm.triton_utils, "HAS_TRITON", False)
    with pytest.raises(UnsupportedError, match="needs Triton"):
        prefer_runner()


def test_async_scheduling_that_was_asked_for_stays_on_with_v2_only() -> None:
    cleared = config(v2=True)
    check_runner(cleared, arguments(async_scheduling=True))
    assert cleared.scheduler_config.async_scheduling and runner_of(cleared) == "V2"
    with pytest.raises(UnsupportedError, match="--async-scheduling needs Model Runner V2"):
        check_runner(config(v2=False), arguments(async_scheduling=True))
    older = config(v2=False, asynchronous=True)
    check_runner(older, arguments())
    assert not older.scheduler_config.async_scheduling


def test_a_stage_takes_stage_0_s_runner_and_another_one_s_after_it_began_anew() -> None:
    adopt_runner("V2", 1)
    assert os.environ[VARIABLE] == "1"
    adopt_runner("V1", 1)
    assert os.environ[VARIABLE] == "0", "what was adopted is not this stage's own word"
    forget_adopted()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(("own", "runner"), [("0", "V2"), ("1", "V1")])
def test_a_stage_that_was_started_with_the_other_one_says_so(
    own: str, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, own)
    with pytest.raises(
        ConfigError, match=f"stage 1 was started with {VARIABLE}={own}, stage 0 runs Model Runner {runner}"
    ):
        adopt_runner(runner, 1)


def test_the_same_word_is_no_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    adopt_runner("V2", 1)
    forget_adopted()
    assert os.environ[VARIABLE] == "1", "its own word stays"
