"""The report of `zmqpp validate`, as text and as JSON. Source of the text: the quick start's expected output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zmqpp.checkpoint.balance import MEASURES, balanced_ranges
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.estimate import Load, StageEstimate, estimate, lopsided
from zmqpp.layers import LayerRange
from zmqpp.units import count, size

_RULE = "-" * 60
_UPPER_BOUND = (
    "  (KV cache: an upper bound; windows, hybrid layers or the type vLLM runs in may make it smaller)"
)

_AMOUNTS: dict[str, Callable[[StageEstimate], int]] = {
    "memory": lambda stage: stage.memory_bytes,
    "compute": lambda stage: stage.active_parameters,
}


@dataclass
class Verdict:
    """What was found out; `problems` decide whether the split is valid.

    Attributes:
        origin: of the ranges: "given", "even", "memory", "compute" (balanced) or "exported".
        held_bytes: of the tensors in an exported stage's folder.
    """

    model: str | None
    total_layers: int
    stages: int
    origin: str
    ranges: dict[int, LayerRange]
    problems: list[str]
    estimates: list[StageEstimate] = field(default_factory=list)
    load: Load = field(default_factory=Load)
    kv_is_exact: bool = True
    needs_remote_code: bool = False
    held_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


def warnings(verdict: Verdict, checkpoint: Checkpoint) -> list[str]:
    """Stages much larger than the mean, each with what mends it."""
    found = []
    for measure in MEASURES:
        amounts = [_AMOUNTS[measure](stage) for stage in verdict.estimates]
        if excess := lopsided(amounts):
            stage, times = excess
            found.append(
                f"Stage {stage} has {times:.1f} times the mean {measure} of a stage: "
                f"{_remedy(verdict, checkpoint, measure, max(amounts))}"
            )
    return found


def _remedy(verdict: Verdict, checkpoint: Checkpoint, measure: str, largest: int) -> str:
    ranges = balanced_ranges(checkpoint, verdict.stages, measure, verdict.load)
    best = max(_AMOUNTS[measure](stage) for stage in estimate(checkpoint, ranges, verdict.load))
    if best >= largest:
        return f"no split into {verdict.stages} stages does better; fewer stages would be more even"
    return (
        f"zmqpp validate --model {verdict.model} --num-stages {verdict.stages} --balance {measure} "
        f"proposes ranges with at most {best / largest:.0%} of that on a stage"
    )


def as_text(verdict: Verdict) -> str:
    """The documented report, then the estimates and warnings."""
    lines = [*_heading(verdict), "", "Layer Range Configuration:", _RULE]
    lines += [_range_line(verdict, stage, layers) for stage, layers in sorted(verdict.ranges.items())]
    lines += [_RULE, "", *(_invalid(verdict) if verdict.problems else _valid(verdict))]
    if verdict.estimates:
        lines += ["", *_estimates(verdict)]
    if verdict.origin in MEASURES and not verdict.problems:
        lines += ["", "  --ranges " + " ".join(map(str, verdict.ranges.values()))]
    notes = list(verdict.warnings)
    if verdict.needs_remote_code:
        notes.append("The model brings its own code: serving it takes --trust-remote-code")
    if notes:
        lines += ["", *(f"⚠ {note}" for note in notes)]
    return "\n".join(lines)


def _heading(verdict: Verdict) -> list[str]:
    total, stages = verdict.total_layers, verdict.stages
    lines = [f"✓ Total layers: {total}"]
    if verdict.model is not None:
        lines = [f"✓ Model: {verdict.model}", f"✓ Detected {total} layers from config.json"]
    origins = {
        "given": f"✓ Using the given layer ranges for {stages} stages",
        "even": f"✓ Auto-calculated layer ranges for {stages} stages",
        "exported": f"✓ Exported as stage {next(iter(verdict.ranges), 0)} of {stages}, "
        f"{size(verdict.held_bytes)} of tensors",
    }
    balanced = f"✓ Balanced layer ranges for {stages} stages by {verdict.origin}"
    return [*lines, origins.get(verdict.origin, balanced)]


def _range_line(verdict: Verdict, stage: int, layers: LayerRange) -> str:
    width = max(2, len(str(verdict.total_layers)))
    return f"  Stage {stage}: [{layers.start:{width}}-{layers.end:{width}})  ({len(layers):{width}} layers)"


def _valid(verdict: Verdict) -> list[str]:
    if verdict.origin == "exported":
        return ["✓ Configuration is VALID", "  - All tensors of the stage's layers are in the folder"]
    return [
        "✓ Configuration is VALID",
        f"  - All {verdict.total_layers} layers are covered exactly once",
        "  - No overlaps or gaps detected",
        "  - Ready for pipeline parallelism",
    ]


def _invalid(verdict: Verdict) -> list[str]:
    return ["✗ Configuration is INVALID", *(f"  - {problem}" for problem in verdict.problems)]


def _estimates(verdict: Verdict) -> list[str]:
    """A table; columns are as wide as their widest cell."""
    load = verdict.load
    kv = f"KV cache ({load.context} tokens x {load.sequences})" if load.context else "KV per token"
    rows = [["Stage", "parameters", "weights", kv, "memory share", "compute share"]]
    memory, compute = (_shares(verdict, measure) for measure in MEASURES)
    for stage, of_memory, of_compute in zip(verdict.estimates, memory, compute, strict=True):
        held = stage.kv_bytes if load.context else stage.kv_bytes_per_token
        cells = [str(stage.stage), count(stage.parameters), size(stage.weight_bytes), size(held)]
        rows.append([*cells, of_memory, of_compute])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    bound = [] if verdict.kv_is_exact else [_UPPER_BOUND]
    return ["Estimate:", _RULE, *lines, _RULE, *bound]


def _shares(verdict: Verdict, measure: str) -> list[str]:
    amounts = [_AMOUNTS[measure](stage) for stage in verdict.estimates]
    return [f"{amount / (sum(amounts) or 1):.1%}" for amount in amounts]


def as_json(verdict: Verdict) -> str:
    """One object; stages that could not be read are missing from `stages`."""
    estimates = {stage.stage: stage for stage in verdict.estimates}
    return json.dumps(
        {
            "valid": not verdict.problems,
            "model": verdict.model,
            "total_layers": verdict.total_layers,
            "num_stages": verdict.stages,
            "origin": verdict.origin,
            "ranges": [str(layers) for _, layers in sorted(verdict.ranges.items())],
            "stages": [_stage_json(i, verdict.ranges[i], estimates.get(i)) for i in sorted(verdict.ranges)],
            "kv_is_upper_bound": not verdict.kv_is_exact,
            "needs_remote_code": verdict.needs_remote_code,
            "problems": verdict.problems,
            "warnings": verdict.warnings,
        },
        indent=2,
        ensure_ascii=False,
    )


def _stage_json(stage: int, layers: LayerRange, estimated: StageEstimate | None) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": stage, "start_layer": layers.start, "end_layer": layers.end}
    if estimated is not None:
        names = ("parameters", "weight_bytes", "kv_bytes_per_token", "kv_bytes", "active_parameters")
        found |= {name: getattr(estimated, name) for name in names}
    return found
