"""Each CPU stage's threads: all cores where they are few, its part where they are many; the user's own word stands."""

from __future__ import annotations

import os

import pytest

from zmqpp.errors import ConfigError
from zmqpp.pipeline import cores
from zmqpp.pipeline.cores import core_environment
from zmqpp.pipeline.devices import stage_environment


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMP_NUM_THREADS",
        "GOMP_SPINCOUNT",
        "VLLM_CPU_OMP_THREADS_BIND",
        "ZMQPP_BALANCE_BATCHES",
        cores.VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "cpu_limit", lambda: None)


def have(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))


def test_few_cores_are_lent_and_batches_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 6)
    lent = stage_environment(1, 3, [])
    assert lent.pop("VLLM_NO_USAGE_STATS") == "1"
    assert lent == {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "6",
        "GOMP_SPINCOUNT": "4000",
        "ZMQPP_BALANCE_BATCHES": "0",
    }
    assert core_environment(2, ranks=2)["OMP_NUM_THREADS"] == "3"  # ranks compute at the same time


def test_replicas_compute_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 6)
    assert stage_environment(5, 6, [], replicas=2)["OMP_NUM_THREADS"] == "3"
    assert stage_environment(5, 6, [], replicas=3)["OMP_NUM_THREADS"] == "2"
    have(monkeypatch, 2)
    assert stage_environment(3, 4, [], replicas=2)["OMP_NUM_THREADS"] == "1"


def test_batches_stay_balanced_where_other_stages_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    partial = stage_environment(0, 2, [], whole=False)
    assert partial["OMP_NUM_THREADS"] == "2" and "ZMQPP_BALANCE_BATCHES" not in partial


@pytest.mark.parametrize(
    ("count", "stages", "ranks", "threads"),
    [(64, 2, 1, 32), (16, 2, 2, 4), (2, 1, 1, 2), (2, 2, 2, 1), (1, 4, 1, 1)],
)
def test_many_cores_are_divided_and_so_are_too_few(
    monkeypatch: pytest.MonkeyPatch, count: int, stages: int, ranks: int, threads: int
) -> None:
    have(monkeypatch, count)
    own = core_environment(stages, ranks)
    assert own == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def test_what_the_user_has_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    monkeypatch.setenv("ZMQPP_BALANCE_BATCHES", "1")
    assert "ZMQPP_BALANCE_BATCHES" not in core_environment(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert core_environment(2) == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def test_the_user_chooses_lending_or_dividing(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 64)
    monkeypatch.setenv(cores.VARIABLE, "1")
    assert core_environment(2)["OMP_NUM_THREADS"] == "64"
    have(monkeypatch, 2)
    monkeypatch.setenv(cores.VARIABLE, "0")
    assert core_environment(2)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv(cores.VARIABLE, "yes")
    with pytest.raises(ConfigError, match="ZMQPP_LEND_CORES='yes': 1 lends all cores"):
        core_environment(2)


def test_threads_are_not_more_than_a_container_gives_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 64)
    monkeypatch.setattr(cores, "cpu_limit", lambda: 4.0)
    assert core_environment(2)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setattr(cores, "cpu_limit", lambda: 16.0)
    assert core_environment(2)["OMP_NUM_THREADS"] == "8"
