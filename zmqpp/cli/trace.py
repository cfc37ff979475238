"""`zmqpp trace`: a few seconds of all stages on one clock, for Perfetto or Chrome."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError

__all__ = ["add_to", "run"]

_EXAMPLE = """\
example:
  zmqpp trace --seconds 5 -o trace.json        then open trace.json in https://ui.perfetto.dev

Send requests meanwhile (`zmqpp bench serve`): without steps there is nothing to see.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "trace",
        help="record a timeline of all stages",
        description="Record a timeline of all stages on one clock: what each step computed, waited for and sent.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", nargs="?", default="127.0.0.1:8080", metavar="URL", help="the pipeline (default: %(default)s)")
    add("--seconds", default="5", metavar="S", help="how long, at most 60 (default: %(default)s)")
    add("-o", "--output", type=Path, default=Path("trace.json"), metavar="FILE", help="default: %(default)s")
    add("--replica", type=int, metavar="I", help="of one replica alone (default: of all)")
    add("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch the trace, write it, say what is in it; returns the exit code."""
    from zmqpp.watch.remote import base_url, fetch
    from zmqpp.watch.trace import read_seconds

    seconds = read_seconds(arguments.seconds)
    folder = arguments.output.absolute().parent
    if not folder.is_dir() or arguments.output.is_dir():
        raise ConfigError(f"--output {arguments.output}: name a file in a folder that exists")
    url = base_url(arguments.url)
    print(f"watching {url} for {seconds:g} s", file=sys.stderr, flush=True)
    one = "" if arguments.replica is None else f"&replica={arguments.replica}"
    body = fetch(url, f"/pipeline/trace?seconds={seconds:g}{one}", timeout_s=seconds + 60)
    summary = _read(body, url)
    _write(arguments.output, body)
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **summary}))
    else:
        _say(summary, arguments.output)
    return 0


def _read(body: bytes, url: str) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(body)["otherData"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{url}/pipeline/trace answers something else than a trace") from None
    return summary


def _write(path: Path, body: bytes) -> None:
    """In one step; where a link leads, and never in place of a pipe or a device."""
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(body)
            return
        part.write_bytes(body)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"--output {path}: {error.strerror}") from error


def _say(summary: dict[str, Any], path: Path) -> None:
    print(f"{summary['steps']} steps in {summary['seconds']:.1f} s")
    for stage, clock in zip(summary["stages"], summary["clocks"], strict=True):
        shares = ", ".join(f"{kind} {stage[kind]:.0%}" for kind in ("compute", "wait", "send", "idle"))
        offset = (
            "same clock as the engine"
            if clock["same_clock"]
            else f"clock {clock['offset_us'] / 1000:+.3f} ms +- {clock['uncertainty_us'] / 1000:.3f} ms"
        )
        print(f"stage {stage['stage']} on {stage['host']}: {shares}; {offset}")
    if share := summary.get("share_of_step"):
        print(
            f"beside computing, a step took {share['median_ms']:.2f} ms (p99 {share['p99_ms']:.2f}): "
            f"there {share['there_ms']:.2f}, between stages {share['between_ms']:.2f}, back {share['back_ms']:.2f}; "
            f"of {share['steps']} steps alone on the ring"
        )
    print(f"written to {path}; open it in https://ui.perfetto.dev or chrome://tracing")
