"""`zmqpp validate`: is this split of the model valid, and what will each stage hold."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from zmqpp.cli.split_arguments import add_ranges, split_texts, stage_count
from zmqpp.errors import ConfigError, LayerRangeError

if TYPE_CHECKING:
    from zmqpp.checkpoint.checkpoint import Checkpoint
    from zmqpp.checkpoint.config import ExportedStage
    from zmqpp.checkpoint.estimate import Load
    from zmqpp.cli.validate_report import Verdict

__all__ = ["add_to", "run"]

_EXAMPLES = """\
examples:
  zmqpp validate --model /path/to/Llama-3-8B --num-stages 4
  zmqpp validate --model /path/to/Llama-3-8B --ranges 0-10 10-20 20-32
  zmqpp validate --total-layers 32 --ranges 0-8 8-16 16-24 24-32
  zmqpp validate --model /path/to/Llama-3-8B --num-stages 4 --balance memory

exit codes: 0 valid, 1 invalid, 2 the question itself cannot be answered
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "validate",
        help="check layer ranges, and estimate what each stage will hold",
        description="Check that layer ranges cover a model exactly once, and estimate what each stage will hold.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="DIR", help="model folder or hub id; only headers are read")
    add("--total-layers", type=int, metavar="L", help="number of layers, where there is no model at hand")
    add("--num-stages", type=int, metavar="N", help="number of stages of an even split")
    add_ranges(parser, "layers of each stage, half-open, apart or with commas: --ranges 0-8 8-16")
    add("--balance", choices=("memory", "compute"), help="propose the ranges whose largest stage is smallest")
    add(
        "--max-model-len",
        type=int,
        default=0,
        metavar="TOKENS",
        help="estimate the KV cache for this context",
    )
    add("--max-num-seqs", type=int, default=1, metavar="N", help="... of so many sequences (default: 1)")
    add("--kv-cache-dtype", default="auto", metavar="DTYPE", help="... in this type (default: the model's)")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, report; returns 0 when valid, 1 when not."""
    from zmqpp.cli.validate_report import as_json, as_text

    _check_arguments(arguments)
    verdict = _verdict(arguments)
    if arguments.json:
        print(as_json(verdict))
    else:
        # A terminal or file of another encoding gets a question mark for the tick, not a traceback.
        encoding = sys.stdout.encoding or "utf-8"
        print(as_text(verdict).encode(encoding, "replace").decode(encoding))
    return 1 if verdict.problems else 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.model is None and arguments.total_layers is None:
        raise ConfigError("give --model DIR, or --total-layers L with --ranges")
    if arguments.total_layers is not None and arguments.total_layers < 1:
        raise ConfigError(f"--total-layers {arguments.total_layers}: must be at least 1")
    if arguments.balance and arguments.model is None:
        raise ConfigError("--balance weighs tensors: give --model DIR")
    if arguments.balance and arguments.ranges:
        raise ConfigError("--balance proposes ranges: give --num-stages N with it, not --ranges")
    for option in ("max_model_len", "max_num_seqs"):
        if getattr(arguments, option) < (option == "max_num_seqs"):
            raise ConfigError(f"--{option.replace('_', '-')} {getattr(arguments, option)}: too small")


def _verdict(arguments: argparse.Namespace) -> Verdict:
    from zmqpp.checkpoint.checkpoint import Checkpoint
    from zmqpp.checkpoint.estimate import Load

    checkpoint = Checkpoint.open(arguments.model) if arguments.model is not None else None
    load = Load(arguments.max_model_len, arguments.max_num_seqs, arguments.kv_cache_dtype)
    if checkpoint is not None and checkpoint.exported:
        return _exported(arguments, checkpoint)
    texts = split_texts(arguments.ranges)
    stages = stage_count(arguments.num_stages, texts, "--num-stages")
    return _judge(arguments, checkpoint, texts, stages, load)


def _judge(
    arguments: argparse.Namespace, checkpoint: Checkpoint | None, texts: list[str], stages: int, load: Load
) -> Verdict:
    from zmqpp.checkpoint.estimate import estimate
    from zmqpp.checkpoint.kv_cache import kv_cache
    from zmqpp.checkpoint.problems import range_problems, read_ranges
    from zmqpp.cli.validate_report import Verdict, warnings

    total = checkpoint.total_layers if checkpoint else arguments.total_layers
    problems = _not_pipelined(checkpoint) + _wrong_total(arguments.total_layers, total)
    given = bool(texts)
    try:
        texts = texts or _proposed(checkpoint, total, stages, arguments.balance, load)
    except LayerRangeError as error:
        problems.append(str(error))
    problems += range_problems(texts, total) if texts else []
    ranges, _ = read_ranges(texts)
    estimates, exact = [], True
    if checkpoint and not problems:
        estimates = estimate(checkpoint, list(ranges.values()), load)
        cache = kv_cache(checkpoint.config, load.cache_dtype)
        exact = cache is None or cache.is_exact
    verdict = Verdict(
        model=arguments.model,
        total_layers=total,
        stages=stages,
        origin="given" if given else arguments.balance or "even",
        ranges=ranges,
        problems=problems,
        estimates=estimates,
        load=load,
        kv_is_exact=exact,
        needs_remote_code=checkpoint is not None and checkpoint.needs_remote_code,
    )
    verdict.warnings += warnings(verdict, checkpoint) if checkpoint and estimates else []
    return verdict


def _not_pipelined(checkpoint: Checkpoint | None) -> list[str]:
    from zmqpp.checkpoint.pipelining import why_not_pipelined

    reason = why_not_pipelined(checkpoint.config) if checkpoint is not None else None
    return [reason] if reason else []


def _wrong_total(said: int | None, total: int) -> list[str]:
    if said in (None, total):
        return []
    return [f"wrong total: --total-layers says {said} layers, the model's config.json {total}"]


def _proposed(
    checkpoint: Checkpoint | None, total: int, stages: int, balance: str | None, load: Load
) -> list[str]:
    from zmqpp.checkpoint.balance import balanced_ranges
    from zmqpp.layers import even_ranges

    if balance and checkpoint:
        return [str(layers) for layers in balanced_ranges(checkpoint, stages, balance, load)]
    return [str(layers) for layers in even_ranges(total, stages)]


def _exported(arguments: argparse.Namespace, checkpoint: Checkpoint) -> Verdict:
    """A stage's own folder: only its own range can be checked."""
    from zmqpp.cli.validate_report import Verdict

    part = checkpoint.exported
    if part is None or arguments.balance:
        raise ConfigError(f"{arguments.model} holds one stage only: give the full model to --balance")
    problems = _not_pipelined(checkpoint) + _wrong_total(arguments.total_layers, checkpoint.total_layers)
    problems += _misplaced(part, checkpoint.total_layers, arguments)
    return Verdict(
        model=arguments.model,
        total_layers=checkpoint.total_layers,
        stages=part.stages,
        origin="exported",
        ranges={part.stage: part.layers},
        problems=problems,
        held_bytes=checkpoint.size_bytes,
        needs_remote_code=checkpoint.needs_remote_code,
    )


def _misplaced(part: ExportedStage, total_layers: int, arguments: argparse.Namespace) -> list[str]:
    """How an exported folder contradicts itself, or the split that was asked about."""
    texts = split_texts(arguments.ranges)
    wanted = len(texts) or arguments.num_stages or part.stages
    here = f"stage {part.stage}: the folder was exported"
    if not 0 <= part.stage < part.stages or part.layers.end > total_layers:
        return [
            f"{here} as stage {part.stage} of {part.stages}, layers {part.layers} of {total_layers}, which cannot be; "
            f"export it again"
        ]
    if wanted != part.stages:
        return [f"{here} as one of {part.stages} stages, not of {wanted}"]
    if texts and texts[part.stage] != str(part.layers):
        return [f"{here} with layers {part.layers}, not {texts[part.stage]}"]
    return []
