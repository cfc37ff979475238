"""`zmqpp bench`: requests against a running endpoint, or the link between two processes of this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from zmqpp.cli.passing import check_flags, take_positional
from zmqpp.errors import ConfigError
from zmqpp.extras import require

if TYPE_CHECKING:
    from zmqpp.pipeline.load import Load, Measured

__all__ = ["add_to", "run_between", "run_serve"]

_URL = "http://127.0.0.1:8080"
_TAKEN = {
    "--backend": "requests go to /v1/completions",
    "--base-url": "give the URL right after `zmqpp bench serve`",
    "--host": "give the URL right after `zmqpp bench serve`",
    "--port": "give the URL right after `zmqpp bench serve`",
    "--max-concurrency": "give --concurrency",
    "--random-input-len": "give --input-len",
    "--random-output-len": "give --output-len",
    "--save-result": "use --json",
    "--result-dir": "use --json",
    "--result-filename": "use --json",
}
_BETWEEN = {"link": "the link beside its peers", "overlap": "transfers beside computing"}
_EXAMPLE = """\
examples:
  zmqpp bench serve http://127.0.0.1:8080 --num-prompts 200 --concurrency 16 --input-len 256 --output-len 64
      random prompts through `vllm bench serve`; with what the pipeline says of itself meanwhile
  zmqpp bench link --quick
      zmqpp's lanes beside other ways to move tensors between two processes, in less than a minute
  zmqpp bench link --device cuda
      the same for tensors of a GPU, beside NCCL and what its copy engines can do
  zmqpp bench overlap --device cuda
      what computing and transfers cost one another, and how long the caller is kept
"""
_SERVE_EXAMPLE = """\
example:
  zmqpp bench serve http://127.0.0.1:8080 --num-prompts 200 --concurrency 16 --json > load.json

Flags that zmqpp does not know go to `vllm bench serve`, for example --request-rate 4.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure a running endpoint, or the link",
        description="Measure a running endpoint, or the link between two processes of this machine.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.print_help() or 0)
    benches = parser.add_subparsers(metavar="WHAT")
    _add_serve(benches)
    for name, text in _BETWEEN.items():
        between = benches.add_parser(name, help=text, add_help=False)
        between.set_defaults(run=run_between, bench=name, takes_vllm_flags=True)


def _add_serve(benches: argparse._SubParsersAction[Any]) -> None:
    serve = benches.add_parser(
        "serve",
        help="requests against a running endpoint",
        description="Send random prompts to a running endpoint; tell throughput and latencies. "
        f"URL is that of `zmqpp serve` or of stage 0 (default: {_URL}).",
        usage="zmqpp bench serve [URL] [options] [FLAGS OF vllm bench serve]",
        epilog=_SERVE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = serve.add_argument
    add("--model", metavar="NAME", help="as the endpoint calls it (default: the first it serves)")
    add(
        "--tokenizer",
        metavar="PATH",
        help="model folder or hub id (default: what the endpoint says it serves)",
    )
    add("--num-prompts", type=int, default=64, metavar="N", help="requests in all (default: %(default)s)")
    add("--concurrency", type=int, default=8, metavar="C", help="requests at a time (default: %(default)s)")
    add("--input-len", type=int, default=128, metavar="N", help="tokens of a prompt (default: %(default)s)")
    add("--output-len", type=int, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
    add("--json", action="store_true", help="the figures as JSON")
    serve.set_defaults(run=run_serve, takes_vllm_flags=True)


def run_between(arguments: argparse.Namespace) -> NoReturn:
    """Become one of the benchmarks between two processes, which have options of their own."""
    command = [sys.executable, "-m", "zmqpp.bench", arguments.bench, *arguments.passed]
    sys.stdout.flush()
    os.execv(command[0], command)


def run_serve(arguments: argparse.Namespace) -> int:
    """Measure, print; 1 when requests failed."""
    from zmqpp.pipeline.load import measure

    load = _load(arguments)
    showing: AbstractContextManager[Any] = nullcontext()
    if sys.stdout.isatty() and not arguments.json:
        from rich.console import Console

        showing = Console().status(
            f"{load.num_prompts} requests, {load.concurrency} at a time, to {load.url}"
        )
    with showing:
        measured = measure(load)
    print(json.dumps(measured.as_json(), indent=2) if arguments.json else _table(measured), flush=True)
    return int(measured.requests["failed"] > 0)


def _load(arguments: argparse.Namespace) -> Load:
    require("httpx", "rich")
    from zmqpp.pipeline.load import Load
    from zmqpp.watch.remote import base_url

    for flag in ("num_prompts", "concurrency", "input_len", "output_len"):
        if getattr(arguments, flag) < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}: must be at least 1")
    word, flags = take_positional(arguments.passed)
    return Load(
        url=base_url(word or _URL),
        num_prompts=arguments.num_prompts,
        concurrency=arguments.concurrency,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        flags=check_flags(flags, _TAKEN),
    )


def _table(measured: Measured) -> str:
    requests, pipeline = measured.requests, measured.pipeline
    failed = f", {requests['failed']} FAILED: {measured.first_error}" if requests["failed"] else ""
    rows = [
        ("requests", f"{requests['completed']} in {requests['duration']:.1f} s{failed}"),
        ("requests/s", f"{requests['request_throughput']:.2f}"),
        ("tokens/s out", f"{requests['output_throughput']:.1f}"),
        ("tokens/s in all", f"{requests['total_token_throughput']:.1f}"),
        *[(title, _spread(requests, key)) for title, key in _LATENCIES],
    ]
    if pipeline is None:
        rows.append(("pipeline", f"{measured.load.url} has no /pipeline/status; `zmqpp serve` does"))
    else:
        rows += [
            (
                "pipeline tokens/s",
                f"{pipeline['tokens_per_s']:.1f}, at most {pipeline['peak_tokens_per_s']:.1f}",
            ),
            ("bubble", f"{100 * pipeline['bubble']:.0f} % of stage time"),
        ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}  {value}" for title, value in rows)


_LATENCIES = (("first token", "ttft"), ("each token after", "tpot"))


def _spread(requests: dict[str, Any], key: str) -> str:
    median, worst = requests[f"median_{key}_ms"], requests[f"p99_{key}_ms"]
    return f"{median:.1f} ms median, {worst:.1f} ms p99"
