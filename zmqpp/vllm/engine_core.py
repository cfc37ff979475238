"""Where our executor reaches into vLLM's EngineCore, its owner: the names are listed in symbols.py."""

from __future__ import annotations

import weakref
from multiprocessing.util import Finalize
from typing import Any

from zmqpp.errors import ConfigError, ZmqppError
from zmqpp.vllm.wording import describe

__all__ = ["announce_engine", "stop_if_asked", "waken"]


def announce_engine(executor: Any) -> None:
    """Once vLLM's engine has its scheduler, its executor gets `engine`, the EngineCore: recovery needs both.

    And each request that comes to the engine is first given to the executor's `admit`, which may raise. Where vLLM
    refuses to go on, the stages hear of it: it leaves `executor` as it is, and then waits for stage 0, its child.
    """
    from vllm.v1.engine.core import EngineCore

    # Before multiprocessing waits for children, which it does at the end of a process.
    Finalize(None, _shut_down, (weakref.ref(executor),), exitpriority=1)
    original = EngineCore._initialize_kv_caches
    if getattr(original, "announces", False):
        return

    def initialize(self: Any, *args: Any, **kwargs: Any) -> Any:
        executor, preprocess = self.model_executor, self.preprocess_add_request
        if not hasattr(executor, "admit"):
            return original(self, *args, **kwargs)  # a later engine of this process, without external stages

        def admit(request: Any) -> Any:
            found = preprocess(request)
            executor.admit(found[0])
            return found

        executor.engine, self.preprocess_add_request = self, admit
        try:
            return original(self, *args, **kwargs)
        except ZmqppError:
            raise
        except Exception as error:
            executor.stop_starting(ConfigError(f"vLLM refuses this configuration: {describe(error)}"))

    initialize.announces = True  # type: ignore[attr-defined]
    EngineCore._initialize_kv_caches = initialize  # type: ignore[method-assign]


def _shut_down(executor: weakref.ref[Any]) -> None:
    if (found := executor()) is not None:
        found.shutdown()


def waken(engine: Any) -> bool:
    """Let the engine's thread look around though no request came; False where it has no queue (`LLM` in process)."""
    from vllm.v1.engine import EngineCoreRequestType

    inputs = getattr(engine, "input_queue", None)
    if inputs is None:
        return False
    if not getattr(engine, "wakes_to_recover", False):
        original = engine._handle_client_request

        def handle(kind: Any, request: Any) -> None:
            if kind is EngineCoreRequestType.WAKEUP:
                engine.model_executor.recover_if_lost()
            original(kind, request)

        engine._handle_client_request, engine.wakes_to_recover = handle, True
    inputs.put_nowait((EngineCoreRequestType.WAKEUP, None))
    return True


def stop_if_asked(engine: Any) -> None:
    """What EngineCore's own loop does between two steps, while it waits for a stage: end requests, and then itself.

    Raises:
        SystemExit: vLLM was told to stop, and no request is left.
    """
    handle = getattr(engine, "_handle_shutdown", None)  # not in every version
    scheduler = getattr(engine, "scheduler", None)
    if handle is None or scheduler is None or engine.shutdown_state.name == "RUNNING":
        return
    handle()
    if not scheduler.get_num_unfinished_requests():
        raise SystemExit(0)
