"""How far from a tensor is what its packed form reads as, and how long does packing take beside a plain copy?"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zmqpp import _engine, _packing
from zmqpp._manifest import PACKED_FORMATS, PACKED_RUN

_MOST_S, _LEAST_TRIES = 0.5, 7


@dataclass(frozen=True)
class Error:
    """Of one kind of tensors in one form."""

    tensors: str
    form: str
    rms: float
    """Of the error, relative to the root of the mean square of the values."""
    largest: float
    """Relative to the largest value of the 128 that share a scale."""
    typical: float
    """Median of each value's error relative to the value."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def errors(kinds: dict[str, torch.Tensor]) -> list[Error]:
    """Kinds: name -> a tensor of a length that is a multiple of nothing in particular."""
    return [_error(name, x, form) for name, x in kinds.items() for form in PACKED_FORMATS]


def _error(name: str, x: torch.Tensor, form: str) -> Error:
    back = there_and_back(x, form).double()
    wanted = x.double()
    off = (back - wanted).abs()
    lacking = -x.shape[-1] % PACKED_RUN
    runs, off_runs = (
        torch.nn.functional.pad(each, (0, lacking)).view(*each.shape[:-1], -1, PACKED_RUN)
        for each in (wanted.abs(), off)
    )
    relative = off_runs / runs.amax(-1, keepdim=True).clamp(min=1e-30)
    there = wanted != 0
    return Error(
        name,
        form,
        rms=float((off.square().mean() / wanted.square().mean()).sqrt()),
        largest=float(relative.max()),
        typical=float((off[there] / wanted[there].abs()).median()),
    )


def there_and_back(x: torch.Tensor, form: str) -> torch.Tensor:
    """What a receiver gets."""
    name = str(x.dtype).removeprefix("torch.")
    return _packing.unpack(*_packing.pack(x, form), name, form, list(x.shape), None)


def hidden_states(text: str) -> dict[str, torch.Tensor]:
    """What vLLM would send between the layers of the embedded model, in its own bfloat16; empty without transformers.

    vLLM's layers hand on the output of their last part, and apart from it the residual that it will be added to.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return {}
    from zmqpp.models import docs_llama

    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(docs_llama())
    model = AutoModelForCausalLM.from_pretrained(docs_llama(), dtype=torch.bfloat16)
    outputs: list[torch.Tensor] = []
    for layer in model.model.layers[:-1]:
        layer.mlp.register_forward_hook(lambda _module, _given, made: outputs.append(made[0]))
    with torch.no_grad():
        sums = model(tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True).hidden_states
    residuals = [whole[0] - part for whole, part in zip(sums[1:], outputs, strict=False)]
    return {"hidden states": torch.cat(outputs), "residuals": torch.cat(residuals)}


# ---- speed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """GB/s of the original tensor; medians."""

    shape: tuple[int, int]
    what: str
    gb_per_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def speeds(shapes: list[tuple[int, int]], device: str) -> list[Speed]:
    """Packing, unpacking and a plain copy of bfloat16 tensors, in turns, on the CPU or on a GPU."""
    made = []
    for shape in shapes:
        x = torch.randn(*shape).bfloat16().to(device)
        works: dict[str, Callable[[], object]] = {"copy": functools.partial(torch.empty_like(x).copy_, x)}
        for form in PACKED_FORMATS:
            works |= {f"pack {form}": _packs(x, form), f"unpack {form}": _unpacks(x, form)}
        times = _in_turns(works, _sync(device))
        made += [Speed(shape, what, x.nbytes / 1e9 / seconds) for what, seconds in times.items()]
    return made


def vectors(device: str) -> str:
    """What does it."""
    return f"{_engine.pack_vectors()} on one core" if device == "cpu" else torch.cuda.get_device_name()


def _packs(x: torch.Tensor, form: str) -> Callable[[], object]:
    if x.is_cuda:
        return lambda: _packing._pack_there(x, form)
    return lambda: _packing.pack(x, form)


def _unpacks(x: torch.Tensor, form: str) -> Callable[[], object]:
    shape = list(x.shape)
    if not x.is_cuda:
        codes, scales = _packing.pack(x, form)
        return lambda: _packing.unpack(codes, scales, "bfloat16", form, shape, None)
    codes, scales = _packing._pack_there(x, form)
    return lambda: _packing._unpack_there(torch.empty_like(x), codes, scales, form)


def _sync(device: str) -> Callable[[], None]:
    return (lambda: None) if device == "cpu" else torch.cuda.synchronize


def _in_turns(works: dict[str, Callable[[], object]], sync: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each; several times between two looks at the clock, where that would weigh."""
    for work in works.values():
        work()
    sync()
    times: dict[str, list[float]] = {name: [] for name in works}
    until = time.monotonic() + _MOST_S * len(works)
    while time.monotonic() < until or len(times[next(iter(works))]) < _LEAST_TRIES:
        for name, work in works.items():
            started = time.perf_counter()
            for _ in range(_AT_ONCE):
                work()
            sync()
            times[name].append((time.perf_counter() - started) / _AT_ONCE)
    return {name: statistics.median(each) for name, each in times.items()}


_AT_ONCE = 10
