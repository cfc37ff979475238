"""The compression benchmark says what is true of numbers that can be reckoned by hand, and leaves no network behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="the bench extra is not installed")

from zmqpp.bench import agreement, packing, slow_link
from zmqpp.bench.agreement import TOKENS
from zmqpp.bench.payload import Size
from zmqpp.bench.throttle import throttled
from zmqpp.bench.transport import Unavailable


def test_errors_are_those_of_the_values() -> None:
    x = torch.zeros(2, 2048)
    x[0], x[1] = 127.0, 63.5
    x[0, 0] = 100.4  # between two codes of int8, whose scale is 1 here
    int8 = next(error for error in packing.errors({"x": x}) if error.form == "int8")
    assert int8.typical == 0
    assert int8.largest == pytest.approx(0.4 / 127, rel=1e-4)
    assert int8.rms == pytest.approx(0.4 / float(x.square().sum().sqrt()), rel=1e-4)


def test_tokens_are_compared_at_their_places_and_logprobs_up_to_the_first_difference() -> None:
    ids = list(range(TOKENS))
    exact = agreement._Run([(ids, [-1.0] * TOKENS), (ids, [-2.0] * TOKENS)], 1000)
    other = [*ids[:10], 99, *ids[11:]]
    packed = agreement._Run([(ids, [-1.5] * TOKENS), (other, [-2.0] * 10 + [-9.0] * (TOKENS - 10))], 300)
    got = agreement._compared(2, "fp8", packed, exact)
    assert (got.prompts, got.equal_prompts) == (2, 1)
    assert (got.tokens, got.equal_tokens) == (2 * TOKENS, 2 * TOKENS - 1)
    assert got.mean_difference == pytest.approx(0.5 * TOKENS / (TOKENS + 10))
    assert (got.largest_difference, got.bytes_sent) == (0.5, 0.3)


def test_a_throttled_link_carries_what_was_packed_and_ends_without_a_trace() -> None:
    before = _children()
    try:
        with throttled(200) as cable:
            assert cable.address(1) == "10.77.0.2" and len(_children()) == len(before) + 2
        made = slow_link.measure([1000], [Size(4, 1024)], rounds=1, turn_s=0.1)
    except Unavailable as error:
        pytest.skip(str(error))
    assert [each.form for each in made] == list(slow_link.FORMS)
    assert all(each.dicts >= 3 and each.ms > 0 for each in made)
    assert _children() == before


def _children() -> list[int]:
    """A network without a name lives as long as a process that is in it."""
    return [
        int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()
    ]
