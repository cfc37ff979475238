"""Calls to the workers while the pipeline serves: what lasts of them is kept for stages that come back."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from zmqpp.vllm.init_log import (
    ADAPTER_CALLS,
    LASTING_CALLS,
    REPEATED_CALLS,
    Call,
    adapter_of,
    with_lasting_call,
)
from zmqpp.vllm.ring_future import LostMeanwhile, RingFuture, StageLost

if TYPE_CHECKING:
    from zmqpp.vllm.executor import ExternalStageExecutor

__all__ = ["ServingCalls"]


class ServingCalls:
    """One that fails is its caller's error alone, where one while the stages are brought up ends them.

    Args:
        executor: that serves.
    Thread: the engine's.
    """

    def __init__(self, executor: ExternalStageExecutor) -> None:
        self._executor = executor
        lora = executor.vllm_config.lora_config
        self._adapters = lora.max_cpu_loras or lora.max_loras if lora is not None else 0

    def run(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
        """Every worker's result.

        Raises:
            RemoteError: a stage's, or one was lost before all had answered. DeadlineError: `timeout`.
        """
        while True:
            try:
                return self.start(method, args, kwargs).result(timeout)
            except StageLost:  # before it was sent: nobody has heard it
                self._executor.recover_if_lost()
            except LostMeanwhile:
                if method not in REPEATED_CALLS:
                    raise

    def start(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RingFuture:
        """The same, to be waited for."""
        future = self._executor.ring.call(method, args, kwargs)
        if method in LASTING_CALLS:
            future.add_done_callback(lambda done: self._note((method, args, kwargs), done))
        return future

    def _note(self, call: Call, done: Future[Any]) -> None:
        executor = self._executor
        if done.cancelled() or done.exception() is not None:
            return
        executor.init_log = with_lasting_call(executor.init_log, call, self._adapters)
        if call[0] in ADAPTER_CALLS:
            executor.bereft.adapters.found(adapter_of(call))
