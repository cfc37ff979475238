"""From the options of `zmqpp serve` to plans: checks what the user gave, chooses what was left open."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zmqpp.checkpoint.balance import balanced_ranges
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.fit import check_code_allowed, check_files, check_layers, read_config
from zmqpp.checkpoint.pipelining import check_pipelined
from zmqpp.checkpoint.split import Split, open_split
from zmqpp.cli.passing import check_flags, check_keys
from zmqpp.cli.split_arguments import check_balance
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, parse_ranges
from zmqpp.pipeline.devices import memory_flags, parse_gpu_ids, stage_environment, visible_devices
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import check_port_free
from zmqpp.pipeline.room import check_replicas, check_room, warn_of_cores
from zmqpp.pipeline.tensor_parallel import ranks_given

__all__ = ["serve_plans"]

_RING_HOST = "127.0.0.1"
_TAKEN = {
    "--host": "give it before `--`: it is the HTTP entry's",
    "--port": "give it before `--`: it is the HTTP entry's; stage 0's is --api-port",
    "--served-model-name": "give --name",
    "--uds": "stages listen on ports",
    "--data-parallel-size": "give it before `--`: zmqpp starts the replicas",
    **dict.fromkeys(
        ("--data-parallel-rank", "--data-parallel-size-local", "--data-parallel-start-rank"),
        "replicas are pipelines of their own; give --data-parallel-size alone, before `--`",
    ),
}


def serve_plans(arguments: argparse.Namespace, model: str | None, flags: Sequence[str]) -> list[PipelinePlan]:
    """The plans for `zmqpp serve`, one a replica, which share this machine.

    Args:
        model: MODEL, if it was given; else `arguments.pipeline_dir` names a split one.
        flags: for every `vllm serve`.
    Raises:
        ConfigError: what is wrong with which option, before anything is started.
    """
    replicas: int = arguments.data_parallel_size
    check_replicas(replicas)
    vllm_flags = check_flags(flags, _TAKEN)
    check_keys(vllm_flags)
    check_balance(arguments.balance, arguments.ranges)
    split = _split(arguments, model)
    ranges = parse_ranges(arguments.ranges or [])
    gpu_ids = parse_gpu_ids(arguments.gpu_ids)
    devices = visible_devices(arguments.device)
    if gpu_ids and not devices:
        gpu_ids = []
        print(
            f"zmqpp: warning: --gpu-ids {arguments.gpu_ids}: there is no GPU here that the vLLM installed could use; "
            "stages run on the CPU",
            file=sys.stderr,
        )
    ranks = ranks_given(vllm_flags) or 1
    stages = _stages(arguments, split, ranges, len(gpu_ids or devices) // (ranks * replicas))
    _check_model(split, model, stages, ranges, vllm_flags)
    if model is not None and arguments.balance:
        ranges = balanced_ranges(Checkpoint.open(model), stages, arguments.balance)
    models = [str(path) for path in split.models] if split else ()
    check_room(replicas, stages * ranks, models or [str(model)], on_gpus=bool(devices))
    all_stages = replicas * stages
    memory = memory_flags(all_stages * ranks, gpu_ids or devices, vllm_flags)
    plans = [
        PipelinePlan(
            model=model or "",
            total=stages,
            base_port=arguments.base_port + replica * (stages + 1),
            api=ApiEndpoint(_RING_HOST, arguments.api_port + replica, *_names(arguments.name, split, model)),
            ranges=ranges,
            arguments=(*vllm_flags, *memory),
            environments=[
                stage_environment(
                    replica * stages + i, all_stages, devices, gpu_ids, ranks, replicas=replicas
                )
                for i in range(stages)
            ],
            models=models,
            host=_RING_HOST,
        )
        for replica in range(replicas)
    ]
    _check_ports(plans, arguments)
    if not devices:
        warn_of_cores(replicas, stages * ranks)
    return plans


def _split(arguments: argparse.Namespace, model: str | None) -> Split | None:
    if bool(model) == bool(arguments.pipeline_dir):
        raise ConfigError(
            "give either MODEL, a model folder or hub id, or --pipeline-dir DIR, made by `zmqpp export`"
        )
    folder = Path(model or arguments.pipeline_dir).expanduser()
    if model is not None and not ((folder / "stage_0").is_dir() and not (folder / "config.json").exists()):
        return None
    for option, given in (("--ranges", arguments.ranges), ("--balance", arguments.balance)):
        if given:
            raise ConfigError(f"{option}: a split model has its ranges already; leave it out, or give MODEL")
    return open_split(folder, arguments.num_stages)


def _stages(
    arguments: argparse.Namespace, split: Split | None, ranges: Sequence[LayerRange], places: int
) -> int:
    """As asked for; else what the split or the ranges say; else as many as there are places on GPUs, at least two."""
    asked: int | None = arguments.num_stages
    if asked is None:
        return len(split) if split else len(ranges) or max(2, places)
    if asked < 2:
        raise ConfigError(f"--num-stages {asked}: a pipeline needs at least 2 stages")
    if ranges and len(ranges) != asked:
        raise ConfigError(
            f"--num-stages {asked} but {len(ranges)} ranges: give one range a stage, or leave --num-stages out"
        )
    return asked


def _check_model(
    split: Split | None, model: str | None, stages: int, ranges: Sequence[LayerRange], flags: Sequence[str]
) -> None:
    if split is not None:
        check_pipelined(split.config, str(split.folder), flags)
        check_code_allowed(split.config, str(split.folder), flags)
        for path in split.models:
            check_files(str(path), flags)
    elif model is not None:
        config = read_config(model, "MODEL")
        check_pipelined(config, model, flags)
        check_layers(config, stages, ranges)
        check_code_allowed(config, model, flags)
        check_files(model, flags)


def _names(name: str | None, split: Split | None, model: str | None) -> tuple[str, tuple[str, ...]]:
    """What requests may call the model: as it was given here, and its last part for short."""
    given = name or str(split.folder if split else model)
    short = Path(given).name
    return given, ((short,) if short not in ("", given) and not name else ())


def _check_ports(plans: Sequence[PipelinePlan], arguments: argparse.Namespace) -> None:
    ring = {stage.bind_port for plan in plans for stage in plan.stages}
    if not 1 <= arguments.port <= 65535:
        raise ConfigError(f"--port {arguments.port}: must lie within 1..65535")
    if arguments.port in ring or arguments.port in [plan.api.port for plan in plans]:
        raise ConfigError(
            f"--port {arguments.port} is also a port of the ring or of stage 0's API: choose another"
        )
    if both := [plan.api.port for plan in plans if plan.api.port in ring]:
        raise ConfigError(
            f"port {both[0]} would be both of a ring and of a stage 0's API: {len(plans)} replicas take the ports "
            f"from --base-port {arguments.base_port} to {plans[-1].return_port}, and from --api-port "
            f"{arguments.api_port} to {plans[-1].api.port}; choose others"
        )
    for plan in plans:
        for stage in plan.stages:
            check_port_free(_RING_HOST, stage.bind_port, "--base-port")
        check_port_free(_RING_HOST, plan.api.port, "--api-port")
