"""`zmqpp doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zmqpp.errors import ConfigError

if TYPE_CHECKING:
    from zmqpp.doctor import Deployment, Finding
    from zmqpp.doctor.finding import Check

__all__ = ["add_to", "run"]

_EXAMPLE = """\
examples:
  zmqpp doctor
      is this machine ready for a pipeline of two stages?
  zmqpp doctor --hosts 10.0.0.1,10.0.0.2,10.0.0.3
      on each of the machines: is it one of them, and does it reach the one before it?

A line begins with ✓ (fine), ! (works, but) or ✗ (will not work).
exit code: 0 nothing stands in the way, 1 there is a problem.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="find out what would stop a pipeline on this machine",
        description="Look at software, memory, cores, GPUs, ports and the way to other machines.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--num-stages", type=int, metavar="N", help="stages to run (default: 2, or one for each of --hosts)")
    add("--hosts", metavar="A,B,...", help="address of each stage's machine, in stage order")
    add("--base-port", type=int, default=15550, metavar="PORT", help="of the ring (default: %(default)s)")
    add("--api-port", type=int, default=8000, metavar="PORT", help="of stage 0's API (default: %(default)s)")
    add("--json", action="store_true", help="the findings as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run all checks, print what each finds as it is found; returns the exit code."""
    from zmqpp.doctor import examine

    deployment = _deployment(arguments)
    findings: list[Finding] = []
    for finding in examine(_checks(deployment)):
        findings.append(finding)
        if not arguments.json:
            print(finding, flush=True)
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if arguments.json:
        print(
            json.dumps({"ok": not problems, "findings": [asdict(finding) for finding in findings]}, indent=2)
        )
    else:
        print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return int(problems > 0)


def _deployment(arguments: argparse.Namespace) -> Deployment:
    from zmqpp.doctor import Deployment
    from zmqpp.pipeline.hosts import parse_hosts
    from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan

    hosts = parse_hosts(arguments.hosts) if arguments.hosts is not None else ()
    stages = arguments.num_stages if arguments.num_stages is not None else len(hosts) or 2
    if hosts and stages != len(hosts):
        raise ConfigError(
            f"--num-stages {stages} but --hosts names {len(hosts)}: name a machine for each stage"
        )
    # Only for its own checks of numbers and ports.
    PipelinePlan("", stages, arguments.base_port, ApiEndpoint("", arguments.api_port, ""), hosts=hosts)
    return Deployment(stages, arguments.base_port, arguments.api_port, hosts)


def _checks(deployment: Deployment) -> list[tuple[str, Check]]:
    from zmqpp.doctor import machine, network, processors, software

    return [
        ("python", software.python),
        ("requirements", software.requirements),
        ("vllm", software.vllm),
        ("plugin", software.plugin),
        ("extension", software.engine),
        ("libzmq", software.libzmq),
        ("torch", software.torch_and_transformers),
        ("cuda", software.cuda),
        ("gpus", lambda: processors.gpus(deployment)),
        ("cores", lambda: processors.cores(deployment)),
        ("memory", lambda: machine.memory(deployment)),
        ("/dev/shm", lambda: machine.shared_memory(deployment)),
        ("segments", machine.leftovers),
        ("limits", machine.limits),
        ("ports", lambda: network.ports(deployment)),
        ("hosts", lambda: network.hosts(deployment)),
        ("way", lambda: network.ways(deployment)),
        ("proxy", lambda: network.proxies(deployment)),
    ]


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
