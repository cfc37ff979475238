"""`zmqpp export`: one Hugging Face folder a stage, with only its tensors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmqpp.cli.split_arguments import add_ranges, check_balance, split_texts, stage_count
from zmqpp.errors import ConfigError
from zmqpp.extras import require
from zmqpp.pipeline.signals import StopRequested, StopSignals
from zmqpp.units import parse_size, size

if TYPE_CHECKING:
    from zmqpp.checkpoint.checkpoint import Checkpoint
    from zmqpp.checkpoint.export import Export, Progress
    from zmqpp.checkpoint.manifest import PipelineManifest
    from zmqpp.layers import LayerRange

__all__ = ["add_to", "run"]

_EXAMPLES = """\
examples:
  zmqpp export --model /path/to/Llama-3-8B --pipeline-parallel-size 4 --output-dir /path/to/pipeline
  zmqpp export --model Qwen/Qwen3-0.6B --ranges 0-12 12-28 --output-dir pipeline --max-shard-size 2GB
  zmqpp export --model Qwen/Qwen3-0.6B --num-stages 2 --balance compute --output-dir pipeline

A stopped or killed export goes on when the same command is given again. The folder is whole once it has
pipeline.json. Serve it with: zmqpp serve --pipeline-dir /path/to/pipeline

exit codes: 0 done and verified, 1 the disk failed or is full, 2 the command is wrong, 128+N stopped by signal N
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "export",
        help="split a model into one folder per stage",
        description="Split a model into one folder per stage, each with only its own tensors, verified byte by byte.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="DIR", required=True, help="model folder or hub id")
    add(
        "--pipeline-parallel-size",
        "--num-stages",
        dest="stages",
        type=int,
        metavar="N",
        help="number of stages",
    )
    add("--output-dir", type=Path, metavar="OUT", required=True, help="stage_0, stage_1, ... are made there")
    add_ranges(
        parser, "layers of each stage, half-open, apart or with commas: --ranges 0-8 8-16 (default: even)"
    )
    add("--balance", choices=("memory", "compute"), help="choose the ranges whose largest stage is smallest")
    add(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default: %(default)s)"
    )
    add("--overwrite", action="store_true", help="replace another export that lies in OUT")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, report; returns the exit code."""
    with StopSignals():
        try:
            return _run(arguments)
        except StopRequested as stop:
            # One line, here: whoever stopped a long copy wants to know that nothing is lost.
            print(f"zmqpp: export {stop}; the same command goes on from here", file=sys.stderr)
            return 128 + stop.signum


def _run(arguments: argparse.Namespace) -> int:
    from zmqpp.checkpoint.checkpoint import Checkpoint
    from zmqpp.checkpoint.export import Export
    from zmqpp.checkpoint.pipelining import check_pipelined

    max_shard_bytes = parse_size(arguments.max_shard_size)
    checkpoint = Checkpoint.open(arguments.model)
    check_pipelined(checkpoint.config, arguments.model)
    ranges = _ranges(arguments, checkpoint)
    export = Export(checkpoint, ranges, arguments.output_dir, max_shard_bytes, arguments.overwrite)
    with _shown(export, quiet=arguments.json) as progress:
        export.progress = progress
        manifest = export.run()
    if arguments.json:
        print(_as_json(arguments.output_dir, manifest))
    else:
        _report(arguments.output_dir, manifest, checkpoint)
    return 0


def _ranges(arguments: argparse.Namespace, checkpoint: Checkpoint) -> list[LayerRange]:
    from zmqpp.checkpoint.balance import balanced_ranges
    from zmqpp.layers import LayerRange, even_ranges

    texts = split_texts(arguments.ranges)
    check_balance(arguments.balance, texts)
    stages = stage_count(arguments.stages, texts, "--pipeline-parallel-size")
    if stages < 2:
        raise ConfigError(f"{stages} stage is the model itself: a pipeline needs at least 2")
    if arguments.balance:
        return balanced_ranges(checkpoint, stages, arguments.balance)
    return [LayerRange.parse(text) for text in texts] or even_ranges(checkpoint.total_layers, stages)


@contextmanager
def _shown(export: Export, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal; one line a stage otherwise, on stderr where stdout is for JSON."""
    from zmqpp.checkpoint.export import Progress

    lines = sys.stderr if quiet else sys.stdout

    def say(line: str) -> None:
        print(line, file=lines, flush=True)

    if quiet or not sys.stdout.isatty():
        yield Progress(say=say)
        return
    with _bar(export.total_bytes) as progress:
        yield progress


@contextmanager
def _bar(total_bytes: int) -> Iterator[Progress]:
    from zmqpp.checkpoint.export import Progress

    require("rich")
    from rich import progress as bars

    columns = (
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(bars.TextColumn("copy and verify"), *columns, transient=True) as bar:
        task = bar.add_task("", total=total_bytes)
        yield Progress(
            moved=lambda moved: bar.advance(task, moved),
            say=lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


def _report(out: Path, manifest: PipelineManifest, checkpoint: Checkpoint) -> None:
    total = sum(stage.weight_bytes for stage in manifest.stages)
    twice = total - checkpoint.size_bytes
    shared = f", {size(twice)} of it on more than one stage" if twice else ""
    print(f"{out}: {len(manifest.stages)} stages, {size(total)}{shared}")
    code = " --trust-remote-code" if checkpoint.needs_remote_code else ""
    print(f"next: zmqpp serve --pipeline-dir {out}{code}")


def _as_json(out: Path, manifest: PipelineManifest) -> str:
    stages = [
        {
            "stage": index,
            "folder": str(out / stage.folder),
            "start_layer": stage.start_layer,
            "end_layer": stage.end_layer,
            "weight_bytes": stage.weight_bytes,
            "files": sorted(stage.tensors),
            "tensors": sum(map(len, stage.tensors.values())),
        }
        for index, stage in enumerate(manifest.stages)
    ]
    document = {"output_dir": str(out), "source": manifest.source, "total_layers": manifest.total_layers}
    return json.dumps({**document, "stages": stages}, indent=2, ensure_ascii=False)
