"""`zmqpp status`: what a running pipeline does, live in the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from zmqpp.errors import ConfigError
from zmqpp.extras import require

if TYPE_CHECKING:
    from rich.console import Console

    from zmqpp.watch.status import PipelineStatus

__all__ = ["add_to", "run"]

_DEFAULT = "http://127.0.0.1:8080"
_PLAIN_COLUMNS = 140
"""Width of what goes into a file or a pipe: no line of it is broken."""
_EXAMPLE = """\
example:
  zmqpp status                        the pipeline of `zmqpp serve` on this machine, about once a second
  zmqpp status 10.0.0.1:8000 --once   one look at another one
  zmqpp status --json | jq .bubble    for a script

exit code: 0 every stage is ready, 1 one is not, 2 nothing answers there, or not a pipeline
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show what a running pipeline does, live",
        description="Show each stage of a running pipeline: lane, throughput, queue, times and state.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", nargs="?", default=_DEFAULT, metavar="URL", help="HOST:PORT or URL (default: %(default)s)")
    add("--once", action="store_true", help="one look instead of a live table")
    add("--json", action="store_true", help="one look, as JSON; docs/status.md explains the fields")
    add(
        "--interval",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between looks (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it until Ctrl-C, or once; returns the exit code."""
    from zmqpp.watch.remote import base_url, fetch_status

    if not 0 < arguments.interval < 86_400:
        raise ConfigError(f"--interval {arguments.interval:g}: give seconds above 0, such as 1")
    require("httpx", "rich")
    url = base_url(arguments.url)
    status, raw = fetch_status(url)
    if arguments.json:
        return _print_json(status, raw)
    console = _console()
    if arguments.once or not console.is_terminal:
        from zmqpp.watch.table import drawn

        console.print(drawn(status))
        return _code(status)
    try:
        _watch(console, url, status, arguments.interval)
    except KeyboardInterrupt:
        pass  # how one leaves
    return 0


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS)


def _print_json(status: PipelineStatus, raw: bytes) -> int:
    import msgspec

    # What the server sent, not what we read of it: a newer one may say more.
    print(msgspec.json.format(raw, indent=2).decode())
    return _code(status)


def _code(status: PipelineStatus) -> int:
    complete = len(status.stages) >= max(status.total_stages, 1)
    ready = status.state == "ready" and complete and all(stage.state == "ready" for stage in status.stages)
    return 0 if ready else 1


def _watch(console: Console, url: str, status: PipelineStatus, interval_s: float) -> None:
    """A server that goes away leaves its last word on the screen, and is asked again."""
    from rich.live import Live

    from zmqpp.watch.remote import fetch_status
    from zmqpp.watch.table import drawn

    heard_at = time.monotonic()
    with Live(drawn(status), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            time.sleep(interval_s)
            trouble = ""
            try:
                status, _ = fetch_status(url)
                heard_at = time.monotonic()
            except ConfigError as error:
                trouble = f"no answer for {time.monotonic() - heard_at:.0f} s: {error}"
            live.update(drawn(status, trouble), refresh=True)
