"""Says now and then that the ring of stages is being waited for."""

from __future__ import annotations

from collections.abc import Callable

from vllm.logger import init_logger

from zmqpp.vllm.options import StageOptions

__all__ = ["say_waiting"]

logger = init_logger("vllm.zmqpp.executor")

_SAY_S = 10


def say_waiting(options: StageOptions) -> Callable[[float], None]:
    """To be called with the seconds waited until now, as they pass."""
    said = 0.0

    def waiting(seconds: float) -> None:
        nonlocal said
        if seconds - said >= _SAY_S:
            said = seconds
            logger.info(
                "waiting for the ring of %d stages to close: nothing yet from the last stage at %s (%.0f s)",
                *(options.total_stages, options.prev_stage_addr, seconds),
            )

    return waiting
