"""`zmqpp restart`: replace stages of the pipeline that `zmqpp serve` runs, with no request lost."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from zmqpp.cli.ordering import add_pipeline, give
from zmqpp.cli.passing import check_flags, check_keys
from zmqpp.errors import ConfigError
from zmqpp.pipeline.stage_name import read_stage

__all__ = ["add_to", "run"]

_EXAMPLE = """\
examples:
  zmqpp restart --stage 1                          in the folder where `zmqpp serve` was started
  zmqpp restart --stage all --log-dir /var/log/p   one after another, from the last one to stage 0
  zmqpp restart --stage 2 --env CUDA_VISIBLE_DEVICES=3 -- --gpu-memory-utilization 0.8
  zmqpp restart --stage 1.0                        with --data-parallel-size: stage 0 of replica 1; 1.all: all of its

Requests wait while a stage is replaced, and go on where they were. Before stage 0 is, those that run are waited for,
and new ones wait at the HTTP entry. A stage that does not come up as it is asked to is started as it was.
New settings for stage 0, or for all, start all stages anew: those that stages share must fit together.
exit codes: 0 replaced, 1 not, and why, 2 a mistake, or no pipeline there.
"""
_TAKEN = dict.fromkeys(("--host", "--port", "--uds"), "it stays as `zmqpp serve` chose it")
_TAKEN["--served-model-name"] = "it stays as `zmqpp serve` was told"
_TAKEN["--data-parallel-size"] = "it stays as `zmqpp serve` was told"


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "restart",
        help="replace stages of a running pipeline, with no request lost",
        description="Replace one stage, or one after another, of the pipeline that `zmqpp serve` runs here.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="zmqpp restart --stage I [options] [-- VLLM OPTIONS]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--stage", nargs="+", required=True, metavar="I", help="which: 1, or 3 2 1, or all")
    add_pipeline(parser)
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set for these stages from now on; may be repeated",
    )
    add(
        "--drain-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="for running requests, before stage 0 is replaced (default: %(default)g)",
    )
    parser.set_defaults(run=run, takes_vllm_flags=True)


def run(arguments: argparse.Namespace) -> int:
    """Give the order and show what comes of it; returns the exit code."""
    if not 0 <= arguments.drain_timeout < 1e9:
        raise ConfigError(f"--drain-timeout {arguments.drain_timeout:g}: give seconds, 0 or more")
    flags = check_flags(arguments.passed, _TAKEN)
    check_keys(flags)
    order = {
        "order": "restart",
        "stages": read_stages(arguments.stage),
        "flags": list(flags),
        "environment": dict(map(_setting, arguments.env)),
        "drain_s": arguments.drain_timeout,
    }
    return give(arguments, order)


def read_stages(words: Sequence[str]) -> list[int | str] | str:
    """In the order of replacement: numbers, names such as `1.0`, or `all`.

    Raises:
        ConfigError: a word is no stage.
    """
    if list(words) == ["all"]:
        return "all"
    found = [word for text in words for word in text.split(",") if word]
    stages = [read_stage(word) for word in found]
    if len(set(stages)) < len(stages) or not stages:
        raise ConfigError(f"--stage {' '.join(words)}: give each stage once")
    return stages


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ConfigError(f"--env {text}: give NAME=VALUE")
    return name, value
