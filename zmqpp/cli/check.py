"""`zmqpp check`: load every stage, run a test input, and compare the tokens with the unsplit model's."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmqpp.cli.passing import check_flags, check_keys, without_ours
from zmqpp.errors import ConfigError
from zmqpp.extras import require
from zmqpp.layers import parse_ranges

if TYPE_CHECKING:
    from rich.console import Console

    from zmqpp.pipeline.check import Answer
    from zmqpp.pipeline.display import StageDisplay
    from zmqpp.pipeline.plan import PipelinePlan
    from zmqpp.pipeline.state import StageState

__all__ = ["add_to", "run"]

_HOST = "127.0.0.1"
_NAME = "model"
_TAKEN = {
    "--host": "the check finds its own",
    "--port": "the check finds its own",
    "--model": "give the folder right after `zmqpp check`",
    "--served-model-name": "leave it out",
    "--dtype": "give it before `--`",
}
_EXAMPLE = """\
examples:
  zmqpp check split/ --against /models/Llama-3-8B
      a split made by `zmqpp export`: does it load, and does it say what the whole model says?
  zmqpp check /models/Llama-3-8B --ranges 0-10 10-32 --test-input "Hello, world!"
      a full model, cut this way

Tokens are chosen greedily. On the CPU both sides compute in float32, where they must be equal; on a GPU in the
model's own type, where rounding may decide between two tokens that are almost equally likely.
exit code: 0 all is well, 1 a stage does not load or the tokens differ, 2 the check cannot be made.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "check",
        help="load every stage of a split, run a test input, compare with the unsplit model",
        description="Load every stage in vLLM, run a test input, compare the tokens with the unsplit model's.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="a split made by `zmqpp export`, or a full model")
    add("--num-stages", type=int, metavar="N", help="cut a full model into N stages")
    add("--ranges", nargs="+", metavar="A-B", help="cut a full model here, half-open: --ranges 0-3 3-8")
    add(
        "--test-input",
        default="Hello, world!",
        metavar="TEXT",
        help="what to go on from (default: %(default)r)",
    )
    add("--max-tokens", type=int, default=16, metavar="N", help="tokens to generate (default: %(default)s)")
    add(
        "--against", metavar="MODEL", help="the unsplit model; it is served after the pipeline, not beside it"
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add("--dtype", metavar="TYPE", help="type to compute in (default: float32 on CPU, else the model's own)")
    add("--json", action="store_true", help="the outcome as JSON on stdout, progress on stderr")
    add("--log-dir", type=Path, default=Path("logs"), metavar="PATH", help="(default: %(default)s)")
    add("--timeout", type=float, default=600.0, metavar="S", help="to load at most (default: %(default)g)")
    parser.set_defaults(run=run, takes_vllm_flags=True)


def run(arguments: argparse.Namespace) -> int:
    """Load, ask, compare, report; returns the exit code."""
    plan = _plan(arguments)
    from rich.console import Console

    from zmqpp.cli.check_report import Outcome, as_json, as_text
    from zmqpp.pipeline.check import compare

    console = Console(highlight=False, stderr=arguments.json, soft_wrap=True)
    answer, states = _ask_pipeline(plan, arguments, console)
    outcome = Outcome(str(arguments.folder), arguments.test_input, states, answer, arguments.against)
    if arguments.against is not None:
        expected = _ask_unsplit(plan, arguments, console)
        outcome = replace(outcome, expected=expected, difference=compare(answer, expected))
    print(json.dumps(as_json(outcome), indent=2) if arguments.json else as_text(outcome), flush=True)
    return int(outcome.difference is not None)


def _plan(arguments: argparse.Namespace) -> PipelinePlan:
    """All that can be known to be wrong before anything is started.

    Raises:
        ConfigError: which option or folder, and what to do.
    """
    from zmqpp.checkpoint.fit import check_code_allowed, read_config
    from zmqpp.checkpoint.pipelining import check_pipelined
    from zmqpp.pipeline.check import default_flags, read_subject
    from zmqpp.pipeline.devices import memory_flags, stage_environment, visible_devices
    from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
    from zmqpp.pipeline.ports import free_base_port, free_port
    from zmqpp.pipeline.tensor_parallel import ranks_given

    _check_options(arguments)
    flags = check_flags(arguments.passed, _TAKEN)
    check_keys(flags)
    subject = read_subject(arguments.folder, arguments.num_stages, parse_ranges(arguments.ranges or []))
    check_pipelined(subject.config, str(arguments.folder), flags)
    check_code_allowed(subject.config, str(arguments.folder), flags)
    if arguments.against is not None:
        check_code_allowed(read_config(arguments.against, "--against"), arguments.against, flags)
    devices, ranks = visible_devices(arguments.device), ranks_given(flags) or 1
    vllm_flags = default_flags(subject, arguments.dtype or (None if devices else "float32"), flags)
    return PipelinePlan(
        model=subject.model,
        total=subject.total,
        base_port=free_base_port(subject.total, _HOST),
        api=ApiEndpoint(_HOST, free_port(_HOST), _NAME),
        ranges=subject.ranges,
        arguments=(*vllm_flags, *memory_flags(subject.total * ranks, devices, flags, cache_is_given=True)),
        environments=[stage_environment(i, subject.total, devices, (), ranks) for i in range(subject.total)],
        models=subject.models,
    )


def _check_options(arguments: argparse.Namespace) -> None:
    require("httpx", "rich")
    if not arguments.test_input.strip():
        raise ConfigError("--test-input is empty: give a few words to go on from")
    if arguments.max_tokens < 1:
        raise ConfigError(f"--max-tokens {arguments.max_tokens}: must be at least 1")
    if arguments.timeout <= 0:
        raise ConfigError(f"--timeout {arguments.timeout:g}: must be above 0 seconds")


def _ask_pipeline(
    plan: PipelinePlan, arguments: argparse.Namespace, console: Console
) -> tuple[Answer, list[StageState]]:
    from zmqpp.pipeline.check import ask
    from zmqpp.pipeline.display import StageDisplay
    from zmqpp.pipeline.launcher import Launcher

    console.print(f"loading {plan.total} stages of {arguments.folder}")
    with Launcher(plan, arguments.log_dir) as launcher:
        launcher.start()
        with StageDisplay(console) as display:
            _wait(launcher, display, arguments.timeout)
        answer = ask(plan.api.url, _NAME, arguments.test_input, arguments.max_tokens)
    return answer, launcher.states


def _wait(launcher: Any, display: StageDisplay, timeout_s: float) -> None:
    try:
        launcher.wait_ready(timeout_s, display.show)
    finally:
        display.show(launcher.states)


def _ask_unsplit(plan: PipelinePlan, arguments: argparse.Namespace, console: Console) -> Answer:
    """The same flags and the same share of the machine: sums then add up in the same order."""
    from zmqpp.pipeline.check import ask
    from zmqpp.pipeline.single import SingleServer

    waiting: AbstractContextManager[Any] = nullcontext()
    if console.is_terminal:
        waiting = console.status(f"loading {arguments.against} in one process")
    else:
        console.print(f"loading {arguments.against} in one process")
    log = arguments.log_dir / "unsplit.log"
    with SingleServer(arguments.against, plan.api, without_ours(plan.arguments), log) as server:
        server.start(plan.stages[0].environment)
        with waiting:
            server.wait_ready(arguments.timeout)
        return ask(plan.api.url, _NAME, arguments.test_input, arguments.max_tokens)
