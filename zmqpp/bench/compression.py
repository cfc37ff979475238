"""What does packing hidden states as fp8 or int8 cost in accuracy and time, and what does it gain over a slow link?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from zmqpp import _engine
from zmqpp.bench import agreement, packing, slow_link, table
from zmqpp.bench.agreement import Agreement
from zmqpp.bench.facts import machine_facts
from zmqpp.bench.packing import Error, Speed
from zmqpp.bench.payload import Size
from zmqpp.bench.report import save
from zmqpp.bench.slow_link import Crossing
from zmqpp.bench.transport import Unavailable

NAME = "compression"
SIZES = (Size(16, 4096), Size(512, 4096))
"""A decode step of 16 requests and a chunk of a prefill."""
RATES = (100, 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write machine and all figures")
    add("--rounds", type=int, default=3, help="of the throttled link (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where packing is timed")
    add(
        "--tokens",
        action="store_true",
        help="instead: do pipelines of the embedded model give the same greedy tokens? (minutes, needs vLLM)",
    )
    add("--stages", type=int, nargs="+", default=[2, 4], metavar="N", help="with --tokens (default: 2 4)")


def run(arguments: argparse.Namespace) -> int:
    contents: dict[str, Any] = {"question": __doc__, "machine": machine_facts()}
    console = table.console()
    if arguments.device == "cuda" and (why := _why_no_gpu()):
        print(f"zmqpp bench: --device cuda: {why}", file=sys.stderr)
        return 2
    if arguments.tokens:
        agreements = agreement.measure(arguments.stages, _say)
        contents["tokens"] = [each.as_json() for each in agreements]
        console.print(_agreement_table(agreements))
    else:
        errors = packing.errors(_kinds())
        speeds = packing.speeds([(size.rows, size.columns) for size in SIZES], arguments.device)
        contents |= {
            "errors": [each.as_json() for each in errors],
            "speeds": [each.as_json() for each in speeds],
        }
        console.print(_error_table(errors))
        console.print(_speed_table(speeds, packing.vectors(arguments.device)))
        try:
            crossings = slow_link.measure(RATES, SIZES, max(1, arguments.rounds))
            contents["crossings"] = [each.as_json() for each in crossings]
            console.print(_crossing_table(crossings))
        except Unavailable as error:
            contents["crossings"] = str(error)
            console.print(f"gain over a slow link: not measured: {error}", soft_wrap=True)
    if arguments.json:
        save(contents, arguments.json)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _why_no_gpu() -> str:
    return "there is no CUDA device" if not torch.cuda.is_available() else _engine.why_no_kernels()


def _kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(512, 4096, generator=generator)
    wild = normal * torch.randn(512, 4096, generator=generator).mul(2).exp()
    kinds = {"normal": normal.bfloat16(), "a few large among small": wild.bfloat16()}
    return kinds | {f"{name} of the embedded model": x for name, x in _hidden_states().items()}


def _hidden_states() -> dict[str, torch.Tensor]:
    return packing.hidden_states("\n".join(agreement.PROMPTS))


# ---- tables ----------------------------------------------------------------------------------------------


def _table(title: str, *headings: str) -> Table:
    made = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    return made


def _error_table(errors: Sequence[Error]) -> Table:
    made = _table(
        "Error, bfloat16", "tensors", "form", "rms", "typical", "largest, of its run's largest value"
    )
    for error in errors:
        figures = (error.rms, error.typical, error.largest)
        made.add_row(error.tensors, error.form, *(f"{100 * figure:.2f} %" for figure in figures))
    return made


def _speed_table(speeds: Sequence[Speed], by: str) -> Table:
    shapes = sorted({speed.shape for speed in speeds})
    made = _table(f"GB/s of the original, {by}", "", *(f"{rows} x {columns}" for rows, columns in shapes))
    for what in dict.fromkeys(speed.what for speed in speeds):
        found = {speed.shape: speed.gb_per_s for speed in speeds if speed.what == what}
        made.add_row(what, *(f"{found[shape]:.1f}" for shape in shapes))
    return made


def _crossing_table(crossings: Sequence[Crossing]) -> Table:
    title = "Over a throttled link, of dicts of two bf16 tensors"
    made = _table(title, "link", "dict", "form", "a dict", "gain", "one after another", "gain")
    plain = {(each.mbit, each.size): each for each in crossings if each.form == "none"}
    for each in crossings:
        base = plain[each.mbit, each.size]
        made.add_row(
            f"{each.mbit} Mbit/s",
            f"2 x {each.size}",
            each.form,
            f"{each.ms:.1f} ms",
            f"{base.ms / each.ms:.2f} x",
            f"{each.mb_per_s:.1f} MB/s",
            f"{each.mb_per_s / base.mb_per_s:.2f} x",
        )
    return made


def _agreement_table(agreements: Sequence[Agreement]) -> Table:
    title = "Greedy tokens of the embedded model in float32, beside those of the same pipeline without compression"
    headings = (
        "stages",
        "form",
        "bytes sent",
        "tokens equal",
        "prompts equal",
        "logprobs differ by",
        "at most",
    )
    made = _table(title, *headings)
    for each in agreements:
        made.add_row(
            str(each.stages),
            each.form,
            f"{100 * each.bytes_sent:.0f} %",
            f"{100 * each.equal_tokens / each.tokens:.1f} %",
            f"{each.equal_prompts} of {each.prompts}",
            f"{each.mean_difference:.4f}",
            f"{each.largest_difference:.3f}",
        )
    return made
