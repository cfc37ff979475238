"""A stage reads only the tensors of its own layers, and says so when one of them is missing.

vLLM lets most missing weights pass in silence (its check exempts every module with a quantisation method,
which includes plain linear layers), and would read a whole checkpoint to keep a part of it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from zmqpp.checkpoint.header import read_header
from zmqpp.checkpoint.names import EXPERT, LAYER, decoder_list, layer_lists
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange
from zmqpp.pipeline.events import emit
from zmqpp.vllm import compat

__all__ = [
    "LoadReport",
    "StageWeights",
    "check_directory",
    "decoder_list",
    "layer_lists",
    "tensor_names",
    "uneven_experts",
]

_TELL_S = 0.5
"""Between two words to the launcher on how far the loading is."""


@dataclass
class LoadReport:
    """What one stage loaded; filled while vLLM loads, before it repacks weights for the device."""

    layers: LayerRange
    total_layers: int
    stage: int
    parameters: int = 0
    parameter_bytes: int = 0
    tensors_read: int = 0
    tensors_skipped: int = 0
    bytes_read: int = 0
    bytes_wanted: int = 0
    seconds: float = 0.0
    names_read: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        size = self.parameter_bytes
        held = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
        return (
            f"stage {self.stage}: layers {self.layers} of {self.total_layers}, {self.parameters:,} parameters, "
            f"{held}, loaded in {self.seconds:.1f} s"
        )

    def count(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Note what the stage holds."""
        self.parameters = sum(p.numel() for p in parameters.values())
        self.parameter_bytes = sum(p.numel() * p.element_size() for p in parameters.values())

    def span(self) -> dict[str, int]:
        """Which layers, of how many."""
        return {
            "start_layer": self.layers.start,
            "end_layer": self.layers.end,
            "total_layers": self.total_layers,
        }

    def add(self, other: dict[str, float]) -> None:
        """Count what another rank of this stage holds and has read, by its `counts`."""
        self.parameters += int(other["parameters"])
        self.parameter_bytes += int(other["bytes"])
        self.tensors_read += int(other["tensors_read"])
        self.bytes_read += int(other["bytes_read"])
        self.seconds = max(self.seconds, other["seconds"])

    def counts(self) -> dict[str, float]:
        """`span`, what is held, and what was read for it."""
        held = {"parameters": self.parameters, "bytes": self.parameter_bytes, "seconds": self.seconds}
        return {**self.span(), **held, "tensors_read": self.tensors_read, "bytes_read": self.bytes_read}


def tensor_names(files: list[str]) -> set[str]:
    """Names in the headers of safetensors files; no tensor is read."""
    return {entry.name for path in files for entry in read_header(Path(path))}


def check_directory(folder: str, layers: LayerRange, total_layers: int, stage: int) -> None:
    """Fail early, from the headers alone, when whole layers of the range are not in the directory.

    Raises:
        ConfigError: names the layers without any tensor.
    """
    files = sorted(str(path) for path in Path(folder).glob("*.safetensors"))
    if not files:
        return
    names = tensor_names(files)
    decoder = decoder_list(names, total_layers)
    held = layer_lists(names).get(decoder, set()) if decoder else set()
    absent = [i for i in range(layers.start, layers.end) if i not in held]
    if absent and decoder:
        raise ConfigError(
            f"stage {stage}: {folder} has no tensors for layer {absent[0]}"
            f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} of its range {layers}; "
            f"it holds layers {_runs(held)}"
        )


def _runs(indices: set[int]) -> str:
    ordered = sorted(indices)
    return f"{ordered[0]}-{ordered[-1] + 1}" if ordered else "none"


class StageWeights:
    """Filters and checks one stage's weights while vLLM's default loader runs."""

    def __init__(self, report: LoadReport) -> None:
        self.report = report
        self._missing: tuple[str, ...] = ()
        self._told_s = time.monotonic()

    def begin(self, model: torch.nn.Module, missing_prefixes: list[str]) -> None:
        """Called before the first tensor is read; `missing_prefixes` are modules on other stages, `lm_head.`."""
        self._missing = tuple(missing_prefixes)
        self._declared = {name for name, _ in model.named_parameters()}
        self._started = time.perf_counter()

    def read(self, files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of this stage from safetensors files; a file that holds none of them is not opened again."""
        headers = {path: read_header(Path(path)) for path in sorted(files)}
        names = {entry.name for entries in headers.values() for entry in entries}
        decoder = decoder_list(names, self.report.total_layers)
        wanted = {
            path: [entry for entry in entries if self._wants(entry.name, decoder)]
            for path, entries in headers.items()
        }
        self.report.bytes_wanted = sum(entry.size_bytes for entries in wanted.values() for entry in entries)
        for path, entries in wanted.items():
            self.report.tensors_skipped += len(headers[path]) - len(entries)
            if not entries:
                continue
            with safe_open(path, framework="pt") as file:
                for entry in entries:
                    tensor = file.get_tensor(entry.name)
                    self._count(entry.name, tensor)
                    yield entry.name, tensor

    def _wants(self, name: str, decoder: str | None) -> bool:
        match = LAYER.match(name)
        if match and match["list"] == decoder:
            return self.report.layers.start <= int(match["index"]) < self.report.layers.end
        return not name.startswith(self._missing)

    def _count(self, name: str, tensor: torch.Tensor) -> None:
        self.report.names_read.add(name)
        self.report.tensors_read += 1
        self.report.bytes_read += tensor.numel() * tensor.element_size()
        if time.monotonic() - self._told_s >= _TELL_S:
            self._told_s = time.monotonic()
            emit(
                self.report.stage,
                "loading",
                read_bytes=self.report.bytes_read,
                wanted_bytes=self.report.bytes_wanted,
            )

    def finish(self, model: torch.nn.Module, loaded: set[str] | None, quantized: bool) -> None:
        """Called after the last tensor was loaded: count what the stage holds, and refuse gaps.

        Raises:
            ConfigError: parameters of this stage that no tensor filled, the first of them named.
        """
        report = self.report
        report.seconds = time.perf_counter() - self._started
        parameters = dict(model.named_parameters())
        report.count(parameters)
        missing = self._half_filled(model, parameters) | uneven_experts(report.names_read)
        if not quantized and loaded is not None:
            # By identity: an expert that a layer's experts share has a name in each module that holds it.
            every = model.named_parameters(remove_duplicate=False)
            filled = {id(p) for name, p in every if not compat.loaded_names(name).isdisjoint(loaded)}
            # What a model makes while it loads, such as the bias of a classifier, it makes of what it has read.
            declared = {name: p for name, p in parameters.items() if name in self._declared and p.numel()}
            unfilled = {name for name, p in declared.items() if id(p) not in filled}
            missing |= {name for name in unfilled if not compat.left_out(name, report.names_read)}
        if missing:
            first = min(missing, key=_natural)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(
                f"stage {report.stage}: layers {report.layers} need the tensor {first}{more}, "
                f"which the model directory does not have; export the stage again or give it the full model"
            )

    def _half_filled(self, model: torch.nn.Module, parameters: dict[str, Any]) -> set[str]:
        """Tensors missing from fused parameters, such as a q_proj beside its k_proj and v_proj."""
        missing: set[str] = set()
        for fused, parts in (getattr(model, "packed_modules_mapping", None) or {}).items():
            for name in parameters:
                if f".{fused}." not in name:
                    continue
                expected = {name.replace(f".{fused}.", f".{part}.") for part in parts}
                found = expected & self.report.names_read
                if found:
                    missing |= expected - found
        return missing


def uneven_experts(names: set[str]) -> set[str]:
    """Tensors that some experts of a layer have and others lack; vLLM loads such a layer in silence."""
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if match := EXPERT.match(name):
            layers[match["list"]][int(match["index"])].add(match["rest"])
    missing: set[str] = set()
    for experts, held in layers.items():
        all_of_them = set().union(*held.values())
        for index in range(max(held) + 1):
            missing |= {f"{experts}.{index}.{rest}" for rest in all_of_them - held[index]}
    return missing


def _natural(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
