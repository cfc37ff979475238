"""What does computing lose while tensors are sent, how much of a transfer is hidden, how long is the caller kept?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from zmqpp.bench import table
from zmqpp.bench.compute import Compute, products_for
from zmqpp.bench.device import CPU
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.link import add_devices, devices_of
from zmqpp.bench.near import Near
from zmqpp.bench.overlapped import Overlap, OverlapRow, overlap_rows
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import Peer, peers_for
from zmqpp.bench.report import report, save
from zmqpp.bench.runner import Plan, Runner
from zmqpp.bench.targets import LARGE, MEDIUM, Verdict
from zmqpp.errors import ConfigError

NAME = "overlap"
SIZES = (MEDIUM, LARGE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings and all figures")
    parser.add_argument("--transports", nargs="+", metavar="NAME", help="default: all that a device has")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="of computing in each measurement")


def run(arguments: argparse.Namespace) -> int:
    plan = plan_of(arguments)
    peers = peers_for(plan.device)
    console, facts = table.console(), machine_facts(plan.device, plan.far_device)
    findings = OverlapRunner(plan, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    rows = overlap_rows(findings.turns)
    verdicts = judge(rows) if plan.device != CPU else []
    contents = report(__doc__ or "", facts, plan, peers, findings, rows)
    contents["targets"] = [verdict.as_json() for verdict in verdicts]
    for size in plan.sizes:
        console.print(figures(size, [row for row in rows if row.size == size], peers))
    for line in table.absences(findings.missing, peers):
        console.print(line, soft_wrap=True)
    console.print(
        f"checked: {findings.checked_dicts} dicts, {findings.checked_bytes / 1e9:.2f} GB, all equal"
    )
    if verdicts:
        console.print(table.targets(verdicts))
    if arguments.json:
        save(contents, arguments.json)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises ConfigError: an argument, or the devices."""
    device, far_device = devices_of(arguments)
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds {arguments.rounds}: must be at least 1")
    if not 0.01 <= arguments.seconds <= 600:
        raise ConfigError(f"--seconds {arguments.seconds:g}: must lie within 0.01..600")
    able = [name for name, peer in peers_for(device).items() if peer.make and (peer.is_ours or device != CPU)]
    transports = tuple(arguments.transports or able)
    for name in transports:
        if name not in able:
            raise ConfigError(f"{name!r} is not measured with --device {device}; use {' '.join(able)}")
    return Plan(
        transports,
        SIZES,
        rounds=arguments.rounds,
        stream_s=arguments.seconds,
        device=device,
        far_device=far_device,
    )


class OverlapRunner(Runner):
    """Instead of round trips and streams: computing alone, transfers alone, and both at once."""

    def _round(self, near: Near, index: int) -> None:
        if index == 0:
            self._compute = Compute(self._plan.device)
            self._product_s = self._compute.product_s()
        super()._round(near, index)

    def _turn(self, near: Near, name: str, size: Size, index: int) -> None:
        if (name, size) not in self._dict_s:
            self._note_trips(name, size, near.trips(name, size, 3))
            self._dict_s[name, size] = self._taken_s(near, name, size, self._dicts(name, size))
        products = products_for(self._dict_s[name, size], self._product_s)
        count = self._count(size, self._plan.stream_s, self._plan.least_dicts, products * self._product_s)
        alone = self._compute.steps(count, products, lambda _: None)
        transfer_s = self._taken_s(near, name, size, count) * count
        both = near.together(name, size, (count, products), self._compute)
        self._findings.count_checks(both)
        self._findings.turns.append(Overlap.of((index, name, size), products, alone, transfer_s, both))

    def _taken_s(self, near: Near, name: str, size: Size, count: int) -> float:
        """What a dict takes one way when nothing is computed."""
        stream = near.stream(name, size, count, reads=False)
        self._findings.count_checks(stream)
        return stream.wall_s / stream.dicts


@dataclass(frozen=True)
class Bound:
    """A row's `measure` must be at most `limit`."""

    transport: str
    size: Size
    measure: str
    limit: float
    at_most: bool = True

    @property
    def text(self) -> str:
        what = "computing, slowed by" if self.measure == "slowdown" else "us a call of isend, median"
        return f"{self.transport}, {self.size.label}: {what}"

    @property
    def wanted(self) -> str:
        return f"<= {self.limit:g}"

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.text,
            "of": self.transport,
            "size": str(self.size),
            "measure": self.measure,
            "wanted": self.wanted,
        }


LIMITS = {"slowdown": 1.05, "isend_p50_us": 30.0}
BOUNDS = tuple(
    Bound(name, size, measure, limit)
    for name, peer in peers_for(torch.device("cuda")).items()
    if peer.is_ours
    for size in SIZES
    for measure, limit in LIMITS.items()
)
"""For tensors of an H200."""


def judge(rows: Sequence[OverlapRow]) -> list[Verdict]:
    known = {(row.transport, row.size): row for row in rows}
    return [
        Verdict(bound, getattr(known.get((bound.transport, bound.size)), bound.measure, None))
        for bound in BOUNDS
    ]


def figures(size: Size, rows: Sequence[OverlapRow], peers: dict[str, Peer]) -> Table:
    made = Table(title=f"{size.label}: a dict after every step of computing", title_justify="left")
    made.add_column("transport", no_wrap=True)
    for heading in ("slowdown", "hidden", "isend p50", "p99", "alone", "GPU memory"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row.isend_p50_us):
        peer = peers[row.transport]
        made.add_row(
            peer.title,
            f"{row.slowdown:.3f} x",
            f"{100 * row.hidden:.0f} %",
            table.duration(row.isend_p50_us),
            table.duration(row.isend_p99_us),
            f"{row.gb_per_s:.2f} GB/s",
            table.memory(row.device_bytes),
            style="bold cyan" if peer.is_ours else None,
        )
    return made
