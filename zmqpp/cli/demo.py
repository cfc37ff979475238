"""`zmqpp demo`: a real pipeline on this machine, started with the documented flags, answering one prompt."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmqpp.cli.demo_plan import demo_plan
from zmqpp.errors import ConfigError
from zmqpp.extras import require

if TYPE_CHECKING:
    from rich.console import Console

    from zmqpp.pipeline.launcher import Launcher
    from zmqpp.pipeline.plan import PipelinePlan

__all__ = ["add_to", "run"]

# The embedded model goes on from here almost word for word as the documentation does.
DEFAULT_PROMPT = 'The "try" statement specifies'

_EXAMPLE = """\
examples:
  zmqpp demo
  zmqpp demo --stages 4 --prompt "To open a file, call"
  zmqpp demo --ranges 0-3 3-8
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="start a pipeline on this machine and complete a prompt",
        description="Start a pipeline on this machine, complete one prompt, show what each stage did, stop.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", type=int, metavar="N", help="number of stages (default: 2, or one per range)")
    add("--prompt", default=DEFAULT_PROMPT, help="what to complete (default: %(default)r)")
    add(
        "--max-tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens to generate at most (default: %(default)s)",
    )
    add(
        "--model",
        metavar="PATH",
        help="model folder or name (default: the 4M-parameter model that ships with zmqpp)",
    )
    add(
        "--ranges",
        nargs="+",
        metavar="A-B",
        help="layers of each stage, half-open: --ranges 0-3 3-8 (default: even split)",
    )
    add("--base-port", type=int, metavar="PORT", help="first port of the ring (default: free ones are found)")
    add("--port", type=int, metavar="PORT", help="port of the OpenAI API (default: a free one is found)")
    add(
        "--log-dir",
        type=Path,
        default=Path("logs"),
        metavar="PATH",
        help="one log per stage goes there (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds until all stages must be ready (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start, complete, stop, report; returns the exit code."""
    require("httpx", "rich")
    from rich.console import Console

    from zmqpp.pipeline.launcher import Launcher

    if not arguments.prompt.strip():
        raise ConfigError("--prompt is empty: give a few words to go on from")
    if arguments.timeout <= 0:
        raise ConfigError(f"--timeout {arguments.timeout:g}: must be above 0 seconds")
    plan = demo_plan(arguments)
    console = Console(highlight=False)
    with Launcher(plan, arguments.log_dir, on_interrupt=_say_stopping) as launcher:
        launcher.start()
        _show_loading(launcher, console, arguments.timeout)
        _complete(launcher, console, arguments)
    _report(launcher, console)
    return 0


def _say_stopping() -> None:
    print("stopping the stages (Ctrl-C again to force it)", file=sys.stderr, flush=True)


def _show_loading(launcher: Launcher, console: Console, timeout_s: float) -> None:
    from zmqpp.pipeline.display import StageDisplay

    plan = launcher.plan
    console.print(
        f"[bold]{plan.api.model_name}[/] in {plan.total} stages on ports {_ports(plan)}", soft_wrap=True
    )
    started = time.monotonic()
    with StageDisplay(console) as display:
        try:
            launcher.wait_ready(timeout_s, display.show)
        finally:
            display.show(launcher.states)
    console.print(f"serving on {plan.api.url} after {time.monotonic() - started:.1f} s\n", soft_wrap=True)


def _ports(plan: PipelinePlan) -> str:
    return ", ".join(str(stage.bind_port) for stage in plan.stages)


def _complete(launcher: Launcher, console: Console, arguments: argparse.Namespace) -> None:
    """Print the prompt, then each piece as it comes."""
    console.print(arguments.prompt, style="bold", end="", markup=False, soft_wrap=True)
    started, first_s = time.monotonic(), 0.0
    try:
        for piece in _watched(launcher, arguments):
            first_s = first_s or time.monotonic() - started
            console.out(piece, end="", highlight=False)
            console.file.flush()
    except BaseException:
        console.print()  # What stopped it goes on a line of its own.
        raise
    console.print(
        f"\n\nfirst word after {first_s:.2f} s, all after {time.monotonic() - started:.2f} s\n", style="dim"
    )


def _watched(launcher: Launcher, arguments: argparse.Namespace) -> Iterator[str]:
    """The completion's pieces; meanwhile a stage that ends is noticed within a fifth of a second."""
    arrived: queue.Queue[str | BaseException | None] = queue.Queue()
    reader = threading.Thread(target=_read_into, args=(arrived, launcher.plan, arguments), daemon=True)
    reader.start()
    while True:
        try:
            item = arrived.get(timeout=0.2)
        except queue.Empty:
            launcher.check()
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            _blame_stage(launcher)
            raise item
        yield item


def _read_into(
    arrived: queue.Queue[str | BaseException | None], plan: PipelinePlan, arguments: argparse.Namespace
) -> None:
    from zmqpp.pipeline.client import Completion, stream_completion

    completion = Completion(plan.api.model_name, arguments.prompt, arguments.max_tokens)
    try:
        for piece in stream_completion(plan.api.url, completion, timeout_s=arguments.timeout):
            arrived.put(piece)
        arrived.put(None)
    except BaseException as error:  # Handed to the main thread, which raises it.
        arrived.put(error)


def _blame_stage(launcher: Launcher) -> None:
    """A broken stream is mostly the effect of a stage that died; give its exit a moment to show."""
    for _ in range(10):
        launcher.check()
        time.sleep(0.1)


def _report(launcher: Launcher, console: Console) -> None:
    from zmqpp.units import count, size

    for state in launcher.states:
        line = f"stage {state.index}: layers {state.layers or '?'}, {count(state.parameters)} parameters"
        moved = f"sent {size(state.sent_bytes)}, received {size(state.received_bytes)}"
        steps = f" in {state.steps} steps" if state.steps is not None else ""
        lane = f", tensors by {state.lane}" if state.lane else ""
        console.print(f"{line}, {moved}{steps}{lane}", soft_wrap=True)
    console.print("all stages stopped", style="dim")
    sys.stdout.flush()
