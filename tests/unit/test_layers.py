"""Layer ranges are half-open, and cover the model exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqpp.errors import LayerRangeError
from zmqpp.layers import LayerRange, check_contiguous, even_ranges


def test_a_range_reads_as_it_is_written() -> None:
    layers = LayerRange.parse(" 8 - 16 ")
    assert (layers.start, layers.end, len(layers), str(layers)) == (8, 16, 8, "8-16")


@pytest.mark.parametrize("text", ["", "8", "8-", "-8", "a-b", "8-16-24", "8:16", "1.5-3", "-1-4"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(LayerRangeError, match="for example 8-16"):
        LayerRange.parse(text)


@pytest.mark.parametrize("text", ["8-4", "4-4", "0-0"])
def test_an_empty_range_is_refused(text: str) -> None:
    with pytest.raises(LayerRangeError, match="is empty"):
        LayerRange.parse(text)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_an_even_split_covers_the_model_and_is_even(case: tuple[int, int]) -> None:
    total, stages = case
    ranges = even_ranges(total, stages)
    check_contiguous(ranges, total)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(LayerRangeError, match="9 stages cannot share 8 layers"):
        even_ranges(8, 9)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (["0-5", "4-8"], ["overlap", "stage 0 (0-5)", "stage 1 (4-8)", "4-5"]),
        (["0-3", "4-8"], ["gap", "3-4", "stage 0", "stage 1"]),
        (["1-4", "4-8"], ["gap", "stage 0", "0-1"]),
        (["0-4", "4-7"], ["gap", "7-8"]),
        (["0-4", "4-9"], ["stage 1", "4-9", "8 layers"]),
        (["4-8", "0-4"], ["gap", "stage 0", "0-4"]),
    ],
)
def test_ranges_that_do_not_fit_are_named(ranges: list[str], words: list[str]) -> None:
    with pytest.raises(LayerRangeError) as caught:
        check_contiguous([LayerRange.parse(text) for text in ranges], 8)
    for word in words:
        assert word in str(caught.value)
