"""What does encrypting a link cost, beside the same link in the clear on the loopback interface?"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zmqpp.bench import table
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.medians import Turn, median_ratio, rows_of
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import CURVE_PEERS, KEYS_VARIABLE, LINK
from zmqpp.bench.report import report, save
from zmqpp.bench.runner import Plan, Runner
from zmqpp.bench.targets import LARGE, MEDIUM, SMALL
from zmqpp.keys import make_keys

NAME = "curve"
SIZES = (SMALL, MEDIUM, LARGE)
LANES = ("tcp", "shm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and all figures")
    parser.add_argument("--rounds", type=int, default=10, help="how often everything is measured")


def run(arguments: argparse.Namespace) -> int:
    console, facts = table.console(), machine_facts()
    plan = Plan(transports=tuple(CURVE_PEERS), sizes=SIZES)
    plan = dataclasses.replace(plan, rounds=max(1, arguments.rounds))
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        make_keys(folder)
        os.environ[KEYS_VARIABLE] = folder  # the far side is a process of its own
        findings = Runner(plan, say, prefix=LINK).run()
    contents = report(__doc__ or "", facts, plan, CURVE_PEERS, findings)
    contents["costs"] = costs = _costs(findings.turns)
    for each in table.figures(rows_of(findings.turns), CURVE_PEERS, findings.missing):
        console.print(each)
    for line in table.absences(findings.missing, CURVE_PEERS):
        console.print(line, soft_wrap=True)
    console.print(_cost_table(costs))
    if arguments.json:
        save(contents, arguments.json)
    return 0


def _costs(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [
        {
            "lane": lane,
            "size": str(size),
            "label": size.label,
            "round_trip": _ratio(turns, lane, size, "rtt_p50_us"),
            "round_trip_p99": _ratio(turns, lane, size, "rtt_p99_us"),
            "one_way": _ratio(turns, lane, size, "gb_per_s"),
        }
        for lane in LANES
        for size in SIZES
    ]


def _ratio(turns: Sequence[Turn], lane: str, size: Size, measure: str) -> float | None:
    return median_ratio(turns, size, f"zmqpp-{lane}-curve", f"zmqpp-{lane}", measure)


def _cost_table(costs: list[dict[str, Any]]) -> Table:
    made = Table(
        title="With keys / without (median over the rounds of the ratio within a round)", title_justify="left"
    )
    for heading in ("lane", "dict", "round trip, median", "p99", "one way"):
        made.add_column(heading, justify="left" if heading == "lane" else "right", no_wrap=True)
    for cost in costs:
        ratios = [cost[name] for name in ("round_trip", "round_trip_p99", "one_way")]
        made.add_row(
            cost["lane"],
            cost["label"],
            *("-" if ratio is None else f"{ratio:.2f} x" for ratio in ratios),
        )
    return made
