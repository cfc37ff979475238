"""`zmqpp stage`: the `vllm serve` line of one stage of a pipeline on several machines; printed, or run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from zmqpp.cli.passing import check_flags, check_keys, take_positional
from zmqpp.errors import ConfigError
from zmqpp.layers import parse_ranges
from zmqpp.pipeline.hosts import parse_hosts
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan, StagePlan

__all__ = ["add_to", "run"]

_TAKEN = {
    "--host": "give --api-host",
    "--port": "give --api-port",
    "--model": "give it before `--`",
}
_EXAMPLE = """\
examples:
  zmqpp stage --print --all --model meta-llama/Meta-Llama-3-8B --hosts 10.0.0.1,10.0.0.2
      the whole plan, a command a stage; run each on the machine that stands above it
  zmqpp stage 1 --model meta-llama/Meta-Llama-3-8B --hosts 10.0.0.1,10.0.0.2 --max-model-len 4096
      on 10.0.0.2: become that stage; what zmqpp does not know goes to vLLM

Every machine must be able to reach port BASE_PORT of the others, and stage 0's machine the last one's
BASE_PORT + number of stages. A machine may occur more than once in --hosts.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "stage",
        help="print or run one stage of a pipeline on several machines",
        description="Print or run the `vllm serve` line of stage I, given the machines of all stages.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="zmqpp stage (I | --all) (--model MODEL | --pipeline-dir DIR) --hosts A,B,... [--print] [VLLM FLAGS]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hosts", required=True, metavar="A,B,...", help="address of each stage's machine, in stage order")
    add("--model", metavar="MODEL", help="model folder or hub id, the same on every machine")
    add("--pipeline-dir", metavar="DIR", help="made by `zmqpp export`: stage I takes DIR/stage_I")
    add("--all", action="store_true", help="every stage's line (with --print or --json)")
    add("--print", action="store_true", dest="show", help="print the line instead of running it")
    add("--json", action="store_true", help="print the lines as JSON: stage, host, argv, environment")
    add("--ranges", nargs="+", metavar="A-B", help="layers of each stage, half-open: --ranges 0-3 3-8")
    add("--base-port", type=int, default=15550, metavar="PORT", help="of the ring (default: %(default)s)")
    add(
        "--api-port",
        type=int,
        default=8000,
        metavar="PORT",
        help="of stage 0's HTTP API (default: %(default)s)",
    )
    add(
        "--api-host",
        default="",
        metavar="HOST",
        help="where the API listens (default: vLLM's, all addresses)",
    )
    add(
        "--gpu-ids",
        metavar="0,1,...",
        help="GPUs that the stages of a machine take in turn (default: vLLM chooses)",
    )
    parser.set_defaults(run=run, takes_vllm_flags=True)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, or become the stage; returns the exit code of the former."""
    word, flags = take_positional(arguments.passed)
    plan = _plan(arguments, check_flags(flags, _TAKEN))
    index = _index(word, plan.total, arguments.all)
    wanted = list(plan.stages) if index is None else [plan.stages[index]]
    if arguments.json:
        print(json.dumps({"stages": [_as_json(stage) for stage in wanted]}, indent=2))
        return 0
    if arguments.show:
        print("\n\n".join(_printed(stage) for stage in wanted))
        return 0
    if index is None:
        raise ConfigError("--all prints the plan: add --print or --json; to run one stage give its index")
    _check_here(plan.stages[index], arguments)
    _become(plan, index)


def _plan(arguments: argparse.Namespace, flags: tuple[str, ...]) -> PipelinePlan:
    from zmqpp.checkpoint.fit import check_layers, read_config
    from zmqpp.checkpoint.split import open_split
    from zmqpp.pipeline.devices import parse_gpu_ids

    if bool(arguments.model) == bool(arguments.pipeline_dir):
        raise ConfigError("give either --model MODEL, or --pipeline-dir DIR made by `zmqpp export`")
    hosts = parse_hosts(arguments.hosts)
    ranges = parse_ranges(arguments.ranges or [])
    # A folder that is not here may well be on the machines that the plan is for.
    if arguments.model and Path(arguments.model).expanduser().is_dir():
        check_layers(read_config(arguments.model), len(hosts), ranges if len(ranges) == len(hosts) else [])
    exported = Path(arguments.pipeline_dir or "").expanduser()
    if arguments.pipeline_dir and (exported / "stage_0").is_dir():
        open_split(exported, len(hosts))
    environments, sharing = _shares(parse_gpu_ids(arguments.gpu_ids), hosts, flags)
    return PipelinePlan(
        model=arguments.model or "",
        total=len(hosts),
        base_port=arguments.base_port,
        api=ApiEndpoint(arguments.api_host, arguments.api_port, ""),
        ranges=ranges,
        arguments=(*flags, *sharing),
        environments=environments,
        models=[str(exported / f"stage_{i}") for i in range(len(hosts))] if arguments.pipeline_dir else (),
        hosts=hosts,
    )


def _shares(
    gpu_ids: list[str], hosts: tuple[str, ...], flags: tuple[str, ...]
) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Each stage's environment, and flags for all, where stages share a machine; alone, vLLM's own choice is the best.

    The K-th stage of a machine takes the K-th of the GPUs; with several ranks, so many at a time.
    All machines are taken to be like this one.
    """
    from zmqpp.pipeline.devices import memory_flags, stage_environment, visible_devices
    from zmqpp.pipeline.tensor_parallel import ranks_given

    places = [hosts[:index].count(host) for index, host in enumerate(hosts)]
    most, ranks = max(places) + 1, ranks_given(flags) or 1
    if gpu_ids:
        return [_gpus(place, gpu_ids, ranks) for place in places], memory_flags(most * ranks, gpu_ids, flags)
    if most == 1:
        return [], ()
    try:
        devices = visible_devices()
    except ConfigError:
        return [], ()  # No vLLM here, so the plan is for other machines.
    sharing = [
        stage_environment(place, hosts.count(host), devices, (), ranks, whole=most == len(hosts))
        if hosts.count(host) > 1
        else {}
        for place, host in zip(places, hosts, strict=True)
    ]
    for share in sharing:
        share.pop("VLLM_NO_USAGE_STATS", None)
    return sharing, memory_flags(most * ranks, devices, flags)


def _gpus(place: int, gpu_ids: list[str], ranks: int) -> dict[str, str]:
    from zmqpp.pipeline.devices import stage_environment

    chosen = stage_environment(place, 1, gpu_ids, ranks=ranks)
    return {"CUDA_VISIBLE_DEVICES": chosen["CUDA_VISIBLE_DEVICES"]}


def _index(word: str | None, total: int, every: bool) -> int | None:
    """None stands for all stages."""
    if every:
        if word is not None:
            raise ConfigError(f"give either the stage {word} or --all")
        return None
    if word is None:
        raise ConfigError("which stage? Give its index right after `zmqpp stage`, or --all")
    if not word.isascii() or not word.isdigit():
        raise ConfigError(f"stage {word!r}: a stage's index is a number from 0 to {total - 1}")
    if int(word) >= total:
        raise ConfigError(f"stage {word}: --hosts names {total} machines, so stages are 0 to {total - 1}")
    return int(word)


def _as_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "stage": stage.index,
        "host": stage.host,
        "argv": ["vllm", *stage.vllm_words()],
        "environment": dict(stage.environment),
    }


def _printed(stage: StagePlan) -> str:
    """One shell command, a flag and its value on each line, as the documents have it."""
    lines, words = [], stage.vllm_words()
    current = [f"{name}={shlex.quote(value)}" for name, value in stage.environment.items()] + ["vllm"]
    for word in words:
        if word.startswith("--"):
            lines.append(" ".join(current))
            current = []
        current.append(shlex.quote(word))
    lines.append(" ".join(current))
    return f"# {stage.host}: stage {stage.index}\n" + " \\\n    ".join(lines)


def _check_here(stage: StagePlan, arguments: argparse.Namespace) -> None:
    """What can be known on the stage's own machine before vLLM is loaded: the model's files and code, the ports."""
    from zmqpp.checkpoint.fit import check_code_allowed, check_files, read_config
    from zmqpp.checkpoint.pipelining import check_pipelined
    from zmqpp.pipeline.own_address import address_doubt
    from zmqpp.pipeline.ports import check_port_free

    check_keys(stage.arguments)
    flag = "--pipeline-dir" if arguments.pipeline_dir else "--model"
    config = read_config(stage.model, flag)
    check_pipelined(config, stage.model, stage.arguments)
    check_code_allowed(config, stage.model, stage.arguments)
    check_files(stage.model, stage.arguments)
    doubt = address_doubt(stage.host)
    if doubt:
        print(f"zmqpp: warning: {doubt}", file=sys.stderr)
    else:
        check_port_free(stage.host, stage.bind_port, "--base-port")
    if stage.api is not None:
        check_port_free(stage.api.host or "0.0.0.0", stage.api.port, "--api-port")


def _become(plan: PipelinePlan, index: int) -> NoReturn:
    """Replace this process, so that signals and the exit code are vLLM's own."""
    from zmqpp.pipeline.devices import vllm_is_cpu

    vllm_is_cpu()  # There is one to become.
    stage = plan.stages[index]
    for name, value in stage.environment.items():
        print(f"zmqpp: {name}={value}", file=sys.stderr)
    sys.stderr.flush()
    command = stage.command()
    os.execve(command[0], command, {**os.environ, **stage.environment})
