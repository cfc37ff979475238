"""Which way moves a dict of tensors between two processes on one host fastest, and at what cost in CPU?"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from zmqpp.bench import table
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.medians import rows_of
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import PEERS
from zmqpp.bench.plot import can_draw, draw
from zmqpp.bench.report import report, save
from zmqpp.bench.runner import HUGE_BYTES, Plan, Runner
from zmqpp.bench.targets import HUGE, LARGE, MEDIUM, SMALL, judge

NAME = "link"
SIZES = (SMALL, MEDIUM, LARGE, HUGE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")
    parser.add_argument(
        "--sizes", type=_size, nargs="+", metavar="ROWSxCOLUMNS", help=f"default: {_words(SIZES)}"
    )
    parser.add_argument("--transports", nargs="+", choices=PEERS, metavar="NAME", help=_words(PEERS))
    parser.add_argument("--quick", action="store_true", help="two short rounds, and not the largest size")
    parser.add_argument("--rounds", type=_at_least_one, help="how often everything is measured")


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot and not can_draw():
        print("zmqpp bench: --plot needs matplotlib: install the extra `bench`", file=sys.stderr)
        return 2
    console, facts, plan = table.console(), machine_facts(), plan_of(arguments)
    findings = Runner(plan, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    contents = report(__doc__ or "", facts, plan, PEERS, findings)
    verdicts = judge(findings.turns)
    contents["targets"] = [verdict.as_json() for verdict in verdicts]
    for each in table.figures(rows_of(findings.turns), PEERS, findings.missing):
        console.print(each)
    for line in table.absences(findings.missing, PEERS):
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
    sizes = tuple(arguments.sizes or SIZES)
    if arguments.quick and not arguments.sizes:
        sizes = tuple(size for size in sizes if size.dict_bytes < HUGE_BYTES)
    plan = Plan(transports=tuple(arguments.transports or PEERS), sizes=sizes)
    if arguments.quick:
        plan = dataclasses.replace(plan, rounds=2, huge_rounds=1, trips_s=0.04, stream_s=0.06, least_dicts=3)
    if arguments.rounds:
        plan = dataclasses.replace(plan, rounds=arguments.rounds)
    return plan


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
