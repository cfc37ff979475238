"""Any split of any model: the stages together have every tensor, and a split is valid exactly when nothing is wrong."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import config_of, llama_names
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.estimate import Load, estimate
from zmqpp.checkpoint.header import TensorEntry
from zmqpp.checkpoint.problems import range_problems
from zmqpp.checkpoint.shards import plan_shards
from zmqpp.checkpoint.share import PLACED, stage_tensors
from zmqpp.errors import LayerRangeError
from zmqpp.layers import LayerRange, check_contiguous

settings.register_profile("ranges", max_examples=200, deadline=None)
settings.load_profile("ranges")


@st.composite
def splits(draw: st.DrawFn) -> list[LayerRange]:
    total = draw(st.integers(1, 40))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, total - 1)), max_size=min(8, total - 1))))
    ends = [0, *(cut for cut in cuts if cut < total), total]
    return [LayerRange(start, end) for start, end in pairwise(ends)]


def model(layers: int, tied: bool, architecture: str) -> Checkpoint:
    tensors, place = {}, 0
    for name, shape in llama_names(layers, tied).items():
        entry = TensorEntry(name, "F32", shape, Path("model.safetensors"), place, 0)
        entry = TensorEntry(name, "F32", shape, entry.path, place, 4 * entry.elements)
        tensors[name] = entry
        place += entry.size_bytes
    config = config_of(layers, tied, architectures=[architecture])
    return Checkpoint(Path(), "m", config, layers, tensors, "model.layers", tied)


@given(splits(), st.booleans(), st.sampled_from([*PLACED, "GPT2LMHeadModel"]))
def test_the_stages_of_any_split_have_all_tensors_and_each_layer_once(
    ranges: list[LayerRange], tied: bool, architecture: str
) -> None:
    checkpoint = model(ranges[-1].end, tied, architecture)
    shares = [{entry.name for entry in stage_tensors(checkpoint, ranges, i)} for i in range(len(ranges))]
    assert set().union(*shares) == set(checkpoint.tensors)
    for name in checkpoint.layers:
        assert sum(name in share for share in shares) == 1
    assert "model.embed_tokens.weight" in shares[0]
    assert "model.norm.weight" in shares[-1]
    assert ("model.embed_tokens.weight" if tied else "lm_head.weight") in shares[-1]
    held = sum(stage.weight_bytes for stage in estimate(checkpoint, ranges, Load()))
    assert held >= checkpoint.size_bytes


@given(splits(), st.integers(1, 4000))
def test_shards_hold_every_tensor_once_in_order_and_none_is_too_large(
    ranges: list[LayerRange], max_bytes: int
) -> None:
    tensors = stage_tensors(model(ranges[-1].end, True, "Qwen3ForCausalLM"), ranges, 0)
    shards = plan_shards(tensors, max_bytes)
    assert [entry for shard in shards for entry in shard.entries] == tensors
    for number, shard in enumerate(shards, 1):
        assert shard.tensor_bytes <= max_bytes or len(shard.entries) == 1
        assert shard.name == f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        assert len(shard.header()) % 8 == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5), st.integers(1, 9))
def test_problems_are_found_exactly_when_the_ranges_do_not_fit(
    pairs: list[tuple[int, int]], total: int
) -> None:
    problems = range_problems([f"{start}-{end}" for start, end in pairs], total)
    try:
        check_contiguous([LayerRange.parse(f"{start}-{end}") for start, end in pairs], total)
    except LayerRangeError:
        assert problems
    else:
        assert not problems


@given(splits())
def test_a_valid_split_has_no_problem_and_each_change_of_it_has(ranges: list[LayerRange]) -> None:
    texts, total = [str(layers) for layers in ranges], ranges[-1].end
    assert range_problems(texts, total) == []
    for stage, layers in enumerate(ranges):
        others = [*texts[:stage], f"{layers.start}-{layers.end + 1}", *texts[stage + 1 :]]
        (problem,) = range_problems(others, total)
        assert f"stage {stage}" in problem
    assert range_problems(texts, total + 1) and range_problems(texts[:-1], total)
