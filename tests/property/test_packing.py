"""Whatever a run holds: each value comes back within what docs/performance.md promises, and nothing else touches it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zmqpp import _packing
from zmqpp._manifest import PACKED_NUMBERS, PACKED_RUN

TINY = float(torch.finfo(torch.float32).tiny)
STEPS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of each dtype, of a value: the result is rounded to it once more."""
SMALLEST = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
"""Half of the smallest number of each dtype."""


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Finite numbers of any size, a tensor of which few are alike."""
    number = draw(st.sampled_from(sorted(PACKED_NUMBERS)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 300)))
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    x = torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=values, fill=values)))
    limit = torch.finfo(PACKED_NUMBERS[number])
    return x.clamp(limit.min, limit.max).to(PACKED_NUMBERS[number])


@given(x=rows(), form=st.sampled_from(["fp8", "int8"]))
@settings(max_examples=200, deadline=None)
def test_each_value_comes_back_within_its_bound(x: torch.Tensor, form: str) -> None:
    number = next(name for name, dtype in PACKED_NUMBERS.items() if dtype == x.dtype)
    back = _packing.unpack(*_packing.pack(x, form), number, form, list(x.shape), None)
    assert back.dtype == x.dtype and bool(back.isfinite().all())
    for first in range(0, x.shape[1], PACKED_RUN):
        run, got = (each[:, first : first + PACKED_RUN].double() for each in (x, back))
        allowed = bound(run, form) * (1 + 1e-6) + STEPS[number] * got.abs() + SMALLEST[number]
        assert bool(((got - run).abs() <= allowed).all())


def bound(run: torch.Tensor, form: str) -> torch.Tensor:
    """Before the result is rounded to the tensor's dtype."""
    largest = run.abs().amax(-1, keepdim=True)
    if form == "int8":
        return (largest / 127).clamp(min=TINY) / 2
    return torch.maximum(run.abs() / 16, (largest / 448).clamp(min=TINY) / 1024)


@given(x=rows(), form=st.sampled_from(["fp8", "int8"]), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_run_is_packed_the_same_whatever_its_neighbours_are(
    x: torch.Tensor, form: str, data: st.DataObject
) -> None:
    codes, scales = _packing.pack(x, form)
    other = x.clone()
    row, run = (
        data.draw(st.integers(0, x.shape[0] - 1)),
        data.draw(st.integers(0, (x.shape[1] - 1) // PACKED_RUN)),
    )
    here = slice(run * PACKED_RUN, (run + 1) * PACKED_RUN)
    other[row, here] = float("nan")
    changed, changed_scales = _packing.pack(other, form)
    changed, codes = changed.view(x.shape), codes.view(x.shape).clone()
    assert not changed[row, here].any()
    codes[row, here] = 0
    assert torch.equal(changed, codes)
    differ = (changed_scales.view(torch.int32) != scales.view(torch.int32)).view(x.shape[0], -1)
    assert int(differ.sum()) == 1 and bool(differ[row, run])
