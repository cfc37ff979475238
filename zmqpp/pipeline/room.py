"""Whether this machine has room for several replicas of a pipeline, as far as can be said before they start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from zmqpp.errors import ConfigError
from zmqpp.pipeline.cores import usable_cores
from zmqpp.pipeline.memory import available_bytes
from zmqpp.units import size

__all__ = ["check_replicas", "check_room", "warn_of_cores"]

_FLAG = "--data-parallel-size"
_MOST = 64
"""Pipelines behind one entry, which is one Python process."""
_PROCESS_BYTES = 400 << 20
"""Of a stage's process beside its weights and KV cache, at least: vLLM and torch, as imported."""


def check_replicas(replicas: int) -> None:
    """Raise ConfigError when it is no number of replicas."""
    if not 1 <= replicas <= _MOST:
        raise ConfigError(
            f"{_FLAG} {replicas}: give the number of pipelines behind this entry, 1 to {_MOST}; "
            "for more start several entries behind a balancer"
        )


def check_room(replicas: int, stages: int, models: Sequence[str], *, on_gpus: bool) -> None:
    """Look whether that many copies of the model fit; one is vLLM's to judge.

    Args:
        stages: of each replica, times the ranks of each.
        models: folders whose weights one replica holds together; others say nothing.
    Raises:
        ConfigError: the memory that is free here does not hold them.
    """
    if replicas == 1:
        return
    weights = 0 if on_gpus else sum(map(_weight_bytes, models))
    needed, there = replicas * (weights + stages * _PROCESS_BYTES), available_bytes()
    if needed > there:
        raise ConfigError(
            f"{_FLAG} {replicas}: {replicas} x {stages} stages take at least {size(needed)} of memory"
            f"{_of_weights(replicas, weights)}, and {size(there)} are free here; give fewer replicas or stages"
        )


def warn_of_cores(replicas: int, stages: int) -> None:
    """Say so when the stages of several replicas, times the ranks of each, outnumber the cores that they run on."""
    cores = usable_cores()
    if replicas > 1 and replicas * stages > cores:
        print(
            f"zmqpp: warning: {replicas} x {stages} stages share {cores} cores: they take turns, and more replicas "
            "answer no more requests a second",
            file=sys.stderr,
        )


def _of_weights(replicas: int, weights: int) -> str:
    return f" ({replicas} x {size(weights)} of it weights)" if weights else ""


def _weight_bytes(model: str) -> int:
    """Of a folder's files; 0 for a hub id."""
    folder = Path(model).expanduser()
    found = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in found)
