"""How long stages wait for one another; each from the environment, with a default."""

from __future__ import annotations

import os

from zmqpp.errors import ConfigError


def startup_s() -> float:
    """`ZMQPP_STARTUP_TIMEOUT_S` (600): for all stages to be there."""
    return _seconds("ZMQPP_STARTUP_TIMEOUT_S", 600.0)


def recovery_s() -> float:
    """`ZMQPP_RECOVERY_TIMEOUT_S` (600): for a lost stage to be back, and the ring to go on."""
    return _seconds("ZMQPP_RECOVERY_TIMEOUT_S", 600.0)


def step_s() -> float:
    """`VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS` (vLLM's own, 300): for one step's activations."""
    return _seconds("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", 300.0)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ConfigError(f"{name}={text!r} is not a positive number of seconds")
    return value
