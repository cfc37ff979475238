"""Which stage gets which tensor, what it will hold, and which split is the most even."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest

from tests.checkpoints import HIDDEN, VOCAB, config_of, llama_names, qwen, write_model
from zmqpp.checkpoint.balance import balanced_ranges, partition
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.estimate import Load, estimate, lopsided
from zmqpp.checkpoint.kv_cache import kv_cache
from zmqpp.checkpoint.share import stage_tensors
from zmqpp.errors import ConfigError, LayerRangeError
from zmqpp.layers import LayerRange, even_ranges

EMBEDDINGS, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def opened(folder: Path, layers: int = 6, tied: bool = False, **config: object) -> Checkpoint:
    return Checkpoint.open(str(qwen(folder / "m", layers, tied, **config)))


def shares(checkpoint: Checkpoint, stages: int) -> list[set[str]]:
    ranges = even_ranges(checkpoint.total_layers, stages)
    return [{entry.name for entry in stage_tensors(checkpoint, ranges, i)} for i in range(stages)]


@pytest.mark.parametrize("tied", [True, False])
def test_ends_are_on_the_ends_and_tied_embeddings_on_both(tmp_path: Path, tied: bool) -> None:
    first, middle, last = shares(opened(tmp_path, tied=tied), 3)
    assert EMBEDDINGS in first and NORM not in first and HEAD not in first
    assert not middle & {EMBEDDINGS, NORM, HEAD}
    assert NORM in last and (EMBEDDINGS in last) is tied and (HEAD in last) is not tied


@pytest.mark.parametrize(
    "architecture", ["GPT2LMHeadModel", "MixtralForCausalLM", "BrandNewForCausalLM", None]
)
def test_models_that_build_their_ends_everywhere_get_them_everywhere(
    tmp_path: Path, architecture: str | None
) -> None:
    config = {"architectures": [architecture]} if architecture else {"architectures": None}
    for share in shares(opened(tmp_path, **config), 3):
        assert {EMBEDDINGS, NORM, HEAD} <= share


def test_models_that_build_only_the_embeddings_everywhere_get_those(tmp_path: Path) -> None:
    first, middle, last = shares(opened(tmp_path, architectures=["Qwen3_5ForCausalLM"]), 3)
    assert EMBEDDINGS in first & middle & last
    assert {NORM, HEAD} <= last and not (first | middle) & {NORM, HEAD}


def test_tensors_whose_place_is_not_known_go_everywhere_and_other_towers_norms_are_no_final_norm(
    tmp_path: Path,
) -> None:
    shapes = {**llama_names(4), "model.rotary.inv_freq": (4,), "vision.encoder.norm.weight": (4,)}
    checkpoint = Checkpoint.open(str(write_model(tmp_path / "m", config_of(4), shapes)))
    for share in shares(checkpoint, 4):
        assert {"model.rotary.inv_freq", "vision.encoder.norm.weight"} <= share


def test_layers_that_predict_further_tokens_stay_with_the_last(tmp_path: Path) -> None:
    shapes = {**llama_names(4), "model.layers.4.eh_proj.weight": (4,)}
    config = config_of(4, num_nextn_predict_layers=1)
    first, last = shares(Checkpoint.open(str(write_model(tmp_path / "m", config, shapes))), 2)
    assert "model.layers.4.eh_proj.weight" in last - first


def test_estimates_count_what_is_in_the_headers(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, layers=4, tied=True)
    first, last = estimate(checkpoint, even_ranges(4, 2), Load(context=10, sequences=3))
    layer, table = 3 * HIDDEN * HIDDEN + HIDDEN, VOCAB * HIDDEN
    assert (first.parameters, last.parameters) == (2 * layer + table, 2 * layer + table + HIDDEN)
    assert first.weight_bytes == 4 * first.parameters
    # The look-up of embeddings is no work, the product with them at the other end is.
    assert (first.active_parameters, last.active_parameters) == (2 * layer, 2 * layer + table)
    per_token = 2 * (2 * 2 * 2) * 2  # layers x (keys and values of 2 heads of 2) x bfloat16
    assert (first.kv_bytes_per_token, first.kv_bytes) == (per_token, 30 * per_token)


def test_of_a_mixture_the_experts_one_token_goes_through_are_counted(tmp_path: Path) -> None:
    shapes = {
        **llama_names(2),
        **{f"model.layers.{i}.mlp.experts.{j}.w": (10, 8) for i in (0, 1) for j in range(8)},
    }
    sizes = {}
    for chosen in (2, 8):
        config = config_of(2, num_experts=8, num_experts_per_tok=chosen)
        checkpoint = Checkpoint.open(str(write_model(tmp_path / str(chosen), config, shapes)))
        sizes[chosen] = estimate(checkpoint, even_ranges(2, 2), Load())[0].active_parameters
    assert sizes[8] - sizes[2] == 6 * 80


def test_packed_weights_count_as_many_as_they_are(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.q.qweight": (4, 2) for i in range(2)} | {"lm_head.weight": (2, 2)}
    config = config_of(2, quantization_config={"bits": 4})
    checkpoint = Checkpoint.open(str(write_model(tmp_path / "m", config, shapes, dtype="int32")))
    assert estimate(checkpoint, even_ranges(2, 2), Load())[0].active_parameters == 8 * 8


@pytest.mark.parametrize(
    ("config", "bytes_per_token", "exact"),
    [
        ({"hidden_size": 64, "num_attention_heads": 8, "dtype": "bfloat16"}, 2 * 64 * 2, True),
        ({"n_embd": 64, "n_head": 8}, 2 * 64 * 2, True),
        (
            {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16},
            2 * 2 * 16 * 2,
            True,
        ),
        ({"hidden_size": 64, "num_attention_heads": 8, "multi_query": True}, 2 * 8 * 2, True),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 128}, 576 * 2, True),
        (
            {"text_config": {"hidden_size": 64, "num_attention_heads": 8, "torch_dtype": "float32"}},
            2 * 64 * 4,
            False,
        ),
        ({"hidden_size": 64, "num_attention_heads": 8, "sliding_window": 4}, 2 * 64 * 2, False),
        ({"hidden_size": 64, "num_attention_heads": 8, "mamba_d_state": 4}, 2 * 64 * 2, False),
    ],
)
def test_cache_of_a_token_follows_the_kind_of_attention(
    config: dict[str, object], bytes_per_token: int, exact: bool
) -> None:
    cache = kv_cache(config)
    assert cache is not None and (cache.bytes_per_token, cache.is_exact) == (bytes_per_token, exact)
    half = kv_cache(config, "fp8")
    assert half is not None and half.bytes_per_token == bytes_per_token // (
        4 if "text_config" in config else 2
    )


def test_windows_bound_the_cache_and_linear_attention_has_none() -> None:
    kinds = ["full_attention", "sliding_attention", "linear_attention"]
    cache = kv_cache(
        {"hidden_size": 8, "num_attention_heads": 2, "sliding_window": 100, "layer_types": kinds}
    )
    assert cache is not None and not cache.is_exact
    assert [cache.layer_bytes(layer, 1000) for layer in range(3)] == [32_000, 3_200, 0]


def test_a_config_that_says_too_little_gives_no_cache() -> None:
    assert kv_cache({"hidden_size": 8}) is None
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp3: not known"):
        kv_cache({"n_embd": 8, "n_head": 2}, "fp3")


def test_balanced_ranges_make_room_for_the_embeddings(tmp_path: Path) -> None:
    shapes = {
        **llama_names(9, tied=True),
        "model.embed_tokens.weight": (52, HIDDEN),
    }  # as large as two layers
    checkpoint = Checkpoint.open(str(write_model(tmp_path / "m", config_of(9, True), shapes)))
    assert [len(layers) for layers in balanced_ranges(checkpoint, 3, "memory")] == [2, 5, 2]
    compute = [len(layers) for layers in balanced_ranges(checkpoint, 3, "compute")]
    assert compute[0] > compute[2], "the first stage has no product with the embeddings"


def test_a_large_cache_outweighs_the_embeddings(tmp_path: Path) -> None:
    shapes = {**llama_names(6, tied=True), "model.embed_tokens.weight": (300, HIDDEN)}
    checkpoint = Checkpoint.open(str(write_model(tmp_path / "m", config_of(6, True), shapes)))
    assert [len(r) for r in balanced_ranges(checkpoint, 3, "memory")] == [1, 4, 1]
    assert [len(r) for r in balanced_ranges(checkpoint, 3, "memory", Load(10_000, 8))] == [2, 2, 2]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7])
def test_no_other_split_has_a_smaller_largest_stage(stages: int) -> None:
    weights = [5, 1, 1, 9, 2, 2, 7]
    beside = [4] + [0] * (stages - 1)

    def cost(stage: int, start: int, end: int) -> float:
        return beside[stage] + sum(weights[start:end])

    def largest(ranges: list[LayerRange]) -> float:
        return max(cost(i, r.start, r.end) for i, r in enumerate(ranges))

    def split(cuts: tuple[int, ...]) -> list[LayerRange]:
        ends = [0, *cuts, len(weights)]
        return [LayerRange(a, b) for a, b in pairwise(ends)]

    every = [split(cuts) for cuts in combinations(range(1, len(weights)), stages - 1)]
    assert largest(partition(len(weights), stages, cost)) == min(map(largest, every))


def test_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerRangeError, match="7 stages cannot share 6 layers"):
        balanced_ranges(opened(tmp_path), 7, "memory")


def test_a_stage_is_lopsided_when_it_has_far_more_than_the_mean() -> None:
    assert lopsided([10, 10, 14]) is None
    assert lopsided([70, 30]) == (0, 1.4)
    assert lopsided([10, 10, 40]) == (2, 2.0)
    assert lopsided([0, 0]) is None
