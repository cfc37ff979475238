"""Stages of several tensor-parallel ranks answer as one ordinary vLLM process does, also when a rank is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES
from tests.integration.machine import children
from tests.integration.serving import Served, long_only, pipeline

pytestmark = long_only

SOME = {
    name: CASES[name]
    for name in (
        *("greedy 0", "greedy 1", "greedy 2", "greedy 3", "seeded", "seeded n=3", "logprobs"),
        *("prompt logprobs", "penalties", "regex", "stop string", "long prompt", "token ids"),
    )
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(tmp_path_factory.mktemp("ranks") / "logs", 2, ranks=(2, 2)) as served:
        yield served


@pytest.fixture
def wanted(expected: dict[str, Any]) -> dict[str, Any]:
    return {name: expected[name] for name in SOME}


def second_rank(served: Served, stage: int) -> int:
    """The process of a stage's rank 1: its parent, rank 0, is the stage."""
    pid = httpx.get(f"{served.url}/pipeline/status", timeout=10).json()["stages"][stage]["pid"]
    (found,) = [child for child in children(pid) if "rank_1" in title(child)]
    return found


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def unmapped() -> set[str]:
    """Names of shared memory that no process has: nobody would ever remove them."""
    held = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            held += maps.read_text()
        except OSError:
            continue
    return {path.name for path in Path("/dev/shm").iterdir() if f"/dev/shm/{path.name}" not in held}


def test_ranks_give_the_answers_of_one_process(served: Served, wanted: dict[str, Any]) -> None:
    assert served.answers(SOME, at_once=8) == wanted


def test_a_killed_rank_ends_its_stage_which_is_replaced(served: Served, wanted: dict[str, Any]) -> None:
    assert served.launcher is not None and served.log_dir is not None
    others, victim = unmapped(), second_rank(served, 1)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served.answers, SOME, 8)
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while served.launcher.runs(1) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "stage 1: its tensor-parallel rank 1 was killed by SIGKILL" in (
            (served.log_dir / "stage_1.log").read_text()
        )
        assert served.launcher.was_killed(1), "it counts as a failure of its own"
        served.launcher.restart_stage(1)
        assert asking.result(180) == wanted
    assert second_rank(served, 1) != victim
    deadline = time.monotonic() + 20  # Python's resource tracker outlives who was killed by a moment.
    while (left := unmapped() - others) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def test_stages_may_have_different_numbers_of_ranks(tmp_path: Path, wanted: dict[str, Any]) -> None:
    with pipeline(tmp_path / "logs", 2, ranks=(1, 2)) as served:
        assert served.answers(SOME, at_once=8) == wanted
