"""An engine of vLLM that refuses to start leaves neither its stages nor stage 0's process waiting."""

from __future__ import annotations

import importlib.util
import multiprocessing.util
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from vllm.v1.engine.core import EngineCore

from zmqpp.errors import ConfigError, StageError
from zmqpp.vllm import engine_core

pytestmark = pytest.mark.vllm


class Executor:
    """As much of ours as an engine that starts meets."""

    def __init__(self) -> None:
        self.is_shut_down, self.engine = False, None
        self.admit = lambda request: None

    def stop_starting(self, error: Exception) -> None:
        raise error

    def shutdown(self) -> None:
        self.is_shut_down = True


def starting(monkeypatch: pytest.MonkeyPatch, executor: Any, error: Exception | None) -> Any:
    """What vLLM's engine does with `executor`; it raises `error`."""

    def initialize(self: Any) -> str:
        if error is not None:
            raise error
        return "caches"

    monkeypatch.setattr(EngineCore, "_initialize_kv_caches", initialize)
    engine_core.announce_engine(executor)
    engine = SimpleNamespace(model_executor=executor, preprocess_add_request=None)
    return lambda: EngineCore._initialize_kv_caches(engine)


def test_what_vllm_refuses_is_said_to_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    start = starting(monkeypatch, Executor(), ValueError("max seq len (1024)"))
    with pytest.raises(ConfigError, match=r"vLLM refuses this configuration: max seq len \(1024\)"):
        start()


def test_what_a_stage_has_said_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = starting(monkeypatch, Executor(), StageError("stage 1: no"))
    with pytest.raises(StageError, match="^stage 1: no$"):
        start()


def test_an_engine_without_external_stages_may_follow_in_the_same_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = Executor()
    assert starting(monkeypatch, executor, None)() == "caches" and executor.engine is not None
    plain = SimpleNamespace(model_executor=SimpleNamespace(), preprocess_add_request="vLLM's own")
    assert EngineCore._initialize_kv_caches(plain) == "caches"
    assert plain.preprocess_add_request == "vLLM's own"


def test_stages_end_before_their_parent_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of an engine's process, whatever vLLM has failed of, multiprocessing joins stage 0."""
    executor = Executor()
    starting(monkeypatch, executor, None)
    registry = multiprocessing.util._finalizer_registry  # type: ignore[attr-defined]
    before_children = [
        one for (priority, _), one in registry.items() if priority is not None and priority >= 0
    ]
    for finalizer in before_children:
        if finalizer._callback is engine_core._shut_down:
            finalizer()
    assert executor.is_shut_down
