"""From the demo's options to a plan: checks what the user gave, chooses what was left open."""

from __future__ import annotations

import argparse
from pathlib import Path

from zmqpp.checkpoint.fit import check_layers, read_config
from zmqpp.errors import ConfigError
from zmqpp.layers import parse_ranges
from zmqpp.models import docs_llama
from zmqpp.pipeline.devices import memory_flags, stage_environment, visible_devices
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import check_port_free, free_base_port, free_port

__all__ = ["demo_plan"]

_HOST = "127.0.0.1"
_MAX_MODEL_LEN = 1024
_KV_CACHE_BYTES = 256 * 1024 * 1024


def demo_plan(arguments: argparse.Namespace) -> PipelinePlan:
    """The plan for `zmqpp demo`.

    Raises:
        ConfigError: what is wrong with which option, before anything is started.
    """
    model = Path(arguments.model) if arguments.model else docs_llama()
    ranges = parse_ranges(arguments.ranges or [])
    stages = _stages(arguments.stages, len(ranges))
    check_layers(read_config(str(model)), stages, ranges)
    if not 1 <= arguments.max_tokens < _MAX_MODEL_LEN:
        raise ConfigError(f"--max-tokens {arguments.max_tokens}: must lie within 1..{_MAX_MODEL_LEN - 1}")
    devices = visible_devices()
    return PipelinePlan(
        model=str(model),
        total=stages,
        base_port=_base_port(arguments.base_port, stages),
        api=ApiEndpoint(_HOST, _api_port(arguments.port), model.resolve().name),
        ranges=ranges,
        arguments=_vllm_arguments(stages, devices),
        environments=[stage_environment(index, stages, devices) for index in range(stages)],
        host=_HOST,
    )


def _stages(asked: int | None, ranges: int) -> int:
    if asked is None:
        return ranges or 2
    if ranges and ranges != asked:
        raise ConfigError(
            f"--stages {asked} but {ranges} ranges: give one range per stage, or leave --stages out"
        )
    if asked < 2:
        raise ConfigError(f"--stages {asked}: a pipeline needs at least 2 stages")
    return asked


def _base_port(asked: int | None, stages: int) -> int:
    if asked is None:
        return free_base_port(stages, _HOST)
    if not 1 <= asked <= 65535 - stages:
        raise ConfigError(
            f"--base-port {asked}: {stages} stages need ports {asked} to {asked + stages} within 1..65535"
        )
    for port in [*range(asked, asked + stages - 1), asked + stages]:
        check_port_free(_HOST, port, "--base-port")
    return asked


def _api_port(asked: int | None) -> int:
    if asked is None:
        return free_port(_HOST)
    if not 1 <= asked <= 65535:
        raise ConfigError(f"--port {asked}: must lie within 1..65535")
    check_port_free(_HOST, asked, "--port")
    return asked


def _vllm_arguments(stages: int, devices: list[str]) -> tuple[str, ...]:
    memory = memory_flags(stages, devices, (), cache_is_given=True)
    common = ("--enforce-eager", "--max-model-len", str(_MAX_MODEL_LEN), "--max-num-seqs", "16")
    return (*common, "--kv-cache-memory-bytes", str(_KV_CACHE_BYTES), *memory)
