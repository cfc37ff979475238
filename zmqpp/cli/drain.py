"""`zmqpp drain`: take no new requests, and wait until those that run are done."""

from __future__ import annotations

import argparse
from typing import Any

from zmqpp.cli.ordering import add_pipeline, give
from zmqpp.errors import ConfigError

__all__ = ["add_to", "run"]

_EXAMPLE = """\
examples:
  zmqpp drain --timeout 300         wait until no request is left, five minutes at most
  zmqpp drain --stop                and then end the pipeline
  zmqpp drain --resume              take requests again

New requests get 503 with Retry-After, and /health says 503 "draining", so that balancers send them elsewhere.
Ctrl-C ends this command alone: the pipeline stays drained until --resume.
exit codes: 0 none is left, 1 some still ran after --timeout, 2 a mistake, or no pipeline there.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "drain",
        help="take no new requests, and wait for those that run",
        description="Let the pipeline that `zmqpp serve` runs here finish its requests, and take no new ones.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_pipeline(parser)
    add = parser.add_argument
    add("--timeout", type=float, metavar="S", help="wait so long at most (default: as long as it takes)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stop", action="store_true", help="end the pipeline when no request is left")
    what.add_argument("--resume", action="store_true", help="take requests again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Give the order and show what comes of it; returns the exit code."""
    if arguments.timeout is not None and not 0 <= arguments.timeout < 1e9:
        raise ConfigError(f"--timeout {arguments.timeout:g}: give seconds, 0 or more")
    order: dict[str, Any] = {"order": "resume"}
    if not arguments.resume:
        order = {"order": "drain", "timeout_s": arguments.timeout, "stop": arguments.stop}
    return give(arguments, order)
