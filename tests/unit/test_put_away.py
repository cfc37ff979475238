"""Calls that put a worker's memory away and bring it back, made twice or by an engine that is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.vllm.greeting import StartOver
from zmqpp.vllm.last_engine import forget_engine
from zmqpp.vllm.put_away import PutAway
from zmqpp.vllm.worker import StageWorker

pytestmark = pytest.mark.vllm

SLEEP: dict[str, Any] = {"level": 1}


class Vllms:
    """A worker of vLLM that counts what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.adapters = {3, 1}

    def sleep(self, level: int = 1) -> None:
        self.heard.append(("sleep", level))

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.heard.append(("wake_up", tags))

    def discard(self, tags: tuple[str, ...]) -> None:
        self.heard.append(("discard", tags))

    def list_loras(self) -> set[int]:
        return self.adapters

    def remove_lora(self, lora_id: int) -> bool:
        self.adapters = self.adapters - {lora_id}
        return True


def stage_worker() -> tuple[StageWorker, Vllms]:
    worker, vllms = object.__new__(StageWorker), Vllms()
    worker.wrapper = vllms  # type: ignore[assignment]
    worker.config = SimpleNamespace(  # type: ignore[assignment]
        lora_config=object(), parallel_config=SimpleNamespace(worker_extension_cls="")
    )
    worker.stage, worker.put_away = 1, PutAway()
    return worker, vllms


def test_what_was_heard_already_is_not_done_twice() -> None:
    """vLLM saves the buffers of memory that is gone when it puts a worker to sleep twice."""
    worker, vllms = stage_worker()
    for _ in range(2):
        worker.call("sleep", (), {"level": 2})
    for _ in range(2):
        worker.call("wake_up", (), {"tags": ["weights"]})
    for _ in range(2):
        worker.call("wake_up", (), {"tags": None})
    for _ in range(2):
        worker.call("discard", (("kv_cache",),), {})
    assert vllms.heard == [
        ("sleep", 2),
        ("wake_up", ["weights"]),
        ("wake_up", None),
        ("discard", ("kv_cache",)),
    ]
    worker.call("sleep", (), SLEEP)
    assert vllms.heard[-1] == ("sleep", 1), "its weights were still there"


def test_another_engine_finds_a_stage_awake_and_without_adapters() -> None:
    worker, vllms = stage_worker()
    worker.call("sleep", (), SLEEP)
    forget_engine(worker)
    assert vllms.heard[-1][0] == "wake_up" and not vllms.adapters
    heard = len(vllms.heard)
    forget_engine(worker)
    assert len(vllms.heard) == heard


def test_weights_that_were_thrown_away_are_loaded_anew_for_another_engine() -> None:
    worker, _ = stage_worker()
    worker.call("sleep", (), {"level": 2})
    with pytest.raises(StartOver, match="put away for good"):
        forget_engine(worker)
    worker.call("wake_up", (), {"tags": ["weights"]})
    with pytest.raises(StartOver):
        forget_engine(worker)
