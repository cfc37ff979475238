"""Which way moves a dict of tensors between two processes on one host fastest, and at what cost in CPU?"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from zmqpp.bench import table
from zmqpp.bench.device import CPU, parse_device
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.medians import rows_of
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import CUDA_PEERS, PEERS, peers_for
from zmqpp.bench.plot import can_draw, draw
from zmqpp.bench.report import report, save
from zmqpp.bench.runner import HUGE_BYTES, Plan, Runner
from zmqpp.bench.targets import CUDA_TARGETS, HUGE, LARGE, MEDIUM, SMALL, TARGETS, judge
from zmqpp.errors import ConfigError

NAME = "link"
SIZES = (SMALL, MEDIUM, LARGE, HUGE)
CUDA_SIZES = (SMALL, MEDIUM, LARGE)
_NAMES = list(dict.fromkeys([*PEERS, *CUDA_PEERS]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")
    add_devices(parser)
    parser.add_argument(
        "--sizes", type=_size, nargs="+", metavar="ROWSxCOLUMNS", help=f"default: {_words(SIZES)}"
    )
    parser.add_argument(
        "--transports",
        nargs="+",
        choices=_NAMES,
        metavar="NAME",
        help=f"{_words(PEERS)}; with --device cuda: {_words(CUDA_PEERS)}",
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds, and not the largest size")
    parser.add_argument("--rounds", type=_at_least_one, help="how often everything is measured")


def add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="cpu", metavar="cpu|cuda|cuda:N", help="where tensors are (default: %(default)s)"
    )
    parser.add_argument(
        "--far-device", metavar="DEVICE", help="where those of the other process are (default: the same)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot and not can_draw():
        print("zmqpp bench: --plot needs matplotlib: install the extra `bench`", file=sys.stderr)
        return 2
    plan = plan_of(arguments)
    if arguments.plot and plan.device != CPU:
        raise ConfigError("--plot draws CPU tensors' figures only; use --json")
    peers = peers_for(plan.device)
    console, facts = table.console(), machine_facts(plan.device, plan.far_device)
    findings = Runner(plan, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    contents = report(__doc__ or "", facts, plan, peers, findings)
    verdicts = judge(findings.turns, TARGETS if plan.device == CPU else CUDA_TARGETS)
    contents["targets"] = [verdict.as_json() for verdict in verdicts]
    for each in table.figures(rows_of(findings.turns), peers, findings.missing):
        console.print(each)
    for line in table.absences(findings.missing, peers):
        console.print(line, soft_wrap=True)
    console.print(
        f"checked: {findings.checked_dicts} dicts, {findings.checked_bytes / 1e9:.2f} GB, all equal"
    )
    console.print(table.targets(verdicts))
    if arguments.json:
        save(contents, arguments.json)
    if arguments.plot:
        draw(contents, arguments.plot)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises ConfigError: the devices, or what cannot be measured there."""
    device, far_device = devices_of(arguments)
    sizes = tuple(arguments.sizes or (SIZES if device == CPU else CUDA_SIZES))
    if arguments.quick and not arguments.sizes:
        sizes = tuple(size for size in sizes if size.dict_bytes < HUGE_BYTES)
    peers = peers_for(device)
    transports = tuple(arguments.transports or peers)
    for name in transports:
        if name not in peers:
            raise ConfigError(f"{name} is not measured with --device {device}; use {_words(peers)}")
    plan = Plan(transports=transports, sizes=sizes, device=device, far_device=far_device)
    if arguments.quick:
        plan = dataclasses.replace(plan, rounds=2, huge_rounds=1, trips_s=0.04, stream_s=0.06, least_dicts=3)
    if arguments.rounds:
        plan = dataclasses.replace(plan, rounds=arguments.rounds)
    return plan


def devices_of(arguments: argparse.Namespace) -> tuple[torch.device, torch.device]:
    """This process's and the other one's. Raises ConfigError."""
    device = parse_device(arguments.device)
    far_device = parse_device(arguments.far_device) if arguments.far_device else device
    if device.type != far_device.type:
        raise ConfigError(
            f"--device {device} and --far-device {far_device}: both must be CUDA devices, or none"
        )
    return device, far_device


def _size(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return number


def _words(names: object) -> str:
    return " ".join(str(name) for name in names)  # type: ignore[attr-defined]
