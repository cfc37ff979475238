"""A stage reads the tensors of its layers and no others, and notices which are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange
from zmqpp.models import docs_llama
from zmqpp.vllm.weights import (
    LoadReport,
    StageWeights,
    check_directory,
    decoder_list,
    layer_lists,
    tensor_names,
)

ELSEWHERE = {0: ["model.norm.", "lm_head."], 1: ["model.embed_tokens."]}
FILES = [str(docs_llama() / "model.safetensors")]


def read(stage: int, layers: LayerRange, files: list[str] = FILES) -> LoadReport:
    report = LoadReport(layers, 8, stage)
    weights = StageWeights(report)
    weights.begin(torch.nn.Module(), ELSEWHERE[stage])
    list(weights.read(files))
    return report


def test_two_stages_read_every_tensor_once() -> None:
    first, second = read(0, LayerRange(0, 3)), read(1, LayerRange(3, 8))
    assert first.names_read | second.names_read == tensor_names(FILES)
    assert not first.names_read & second.names_read
    assert "model.embed_tokens.weight" in first.names_read
    assert {"model.norm.weight", "lm_head.weight"} <= second.names_read
    assert (
        first.tensors_read + second.tensors_read
        == len(tensor_names(FILES))
        == first.tensors_skipped + first.tensors_read
    )
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in load_file(FILES[0]).values())
    assert first.bytes_read + second.bytes_read == sizes


def test_a_shard_without_any_of_the_layers_is_read_no_further_than_its_header(tmp_path: Path) -> None:
    paths = []
    for layer in range(8):
        path = tmp_path / f"model-{layer}.safetensors"
        save_file({f"model.layers.{layer}.mlp.weight": torch.ones(3)}, path)
        paths.append(str(path))
    report = read(1, LayerRange(6, 8), paths)
    assert report.names_read == {"model.layers.6.mlp.weight", "model.layers.7.mlp.weight"}
    assert report.bytes_read == 24


def test_other_towers_are_not_taken_for_the_decoder() -> None:
    names = {f"vision_tower.layers.{i}.weight" for i in range(8)}
    names |= {f"language_model.model.layers.{i}.mlp.experts.{j}.w" for i in range(8) for j in range(4)}
    assert layer_lists(names) == {"language_model.model.layers": set(range(8))}
    assert decoder_list(names, 8) == "language_model.model.layers"


@pytest.mark.parametrize(
    "name", ["h.3.attn.weight", "transformer.h.3.attn.weight", "model.decoder.layers.3.fc1.weight"]
)
def test_layers_are_found_under_other_names_too(name: str) -> None:
    (held,) = layer_lists({name}).values()
    assert held == {3}


def test_a_directory_without_a_layer_of_the_range_is_named(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.mlp.weight": torch.ones(1) for i in range(4, 7)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"stage 1: .* has no tensors for layer 7 of its range 4-8; it holds layers 4-7"
    ):
        check_directory(str(tmp_path), LayerRange(4, 8), 8, 1)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    whole = Path(FILES[0]).read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ConfigError, match="model.safetensors is truncated: its header describes 7 878 888 bytes"
    ):
        check_directory(str(tmp_path), LayerRange(4, 8), 8, 1)


class Fused(torch.nn.Module):
    """A module list of one layer with a fused qkv, as vLLM's Llama has."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Module()
        self.attn.qkv_proj = torch.nn.Linear(2, 6, bias=False)
        self.attn.o_proj = torch.nn.Linear(2, 2, bias=False)


@pytest.mark.parametrize(
    ("read_names", "loaded", "missing"),
    [
        (
            ["attn.k_proj.weight", "attn.v_proj.weight", "attn.o_proj.weight"],
            ["attn.qkv_proj.weight", "attn.o_proj.weight"],
            "attn.q_proj.weight",
        ),
        (
            ["attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"],
            ["attn.qkv_proj.weight"],
            "attn.o_proj.weight",
        ),
        ([], [], "attn.o_proj.weight and 1 more"),
    ],
    ids=["part of a fused one", "a plain one", "all"],
)
def test_a_missing_tensor_is_named(read_names: list[str], loaded: list[str], missing: str) -> None:
    report = LoadReport(LayerRange(0, 1), 1, 0)
    weights = StageWeights(report)
    model = Fused()
    weights.begin(model, [])
    report.names_read.update(read_names)
    with pytest.raises(ConfigError, match=f"need the tensor {missing}"):
        weights.finish(model, set(loaded), quantized=False)
    assert report.parameters == 16


def test_a_tensor_that_two_modules_share_is_there_under_either_name() -> None:
    model = Fused()
    model.experts = torch.nn.Module()
    model.experts.shared, model.shared = model.attn, model.attn
    weights = StageWeights(LoadReport(LayerRange(0, 1), 1, 0))
    weights.begin(model, [])
    with pytest.raises(ConfigError, match="attn.o_proj.weight, which"):
        weights.finish(model, {"shared.qkv_proj.weight"}, quantized=False)
    weights.finish(model, {"shared.qkv_proj.weight", "experts.shared.o_proj.weight"}, quantized=False)


@pytest.mark.parametrize("said", ["experts.routed_experts.w13_weight", "experts.w13_weight"])
def test_experts_are_loaded_under_the_names_of_any_version(said: str) -> None:
    model = torch.nn.Module()
    model.experts = torch.nn.Module()
    model.experts.routed_experts = torch.nn.Module()
    model.experts.routed_experts.w13_weight = torch.nn.Parameter(torch.ones(4, 2))
    weights = StageWeights(LoadReport(LayerRange(0, 1), 1, 0))
    weights.begin(model, [])
    weights.finish(model, {said}, quantized=False)
    with pytest.raises(ConfigError, match="need the tensor experts.routed_experts.w13_weight,"):
        weights.finish(model, {"experts.w2_weight"}, quantized=False)


def test_what_vllm_leaves_out_of_what_was_read_is_not_missed() -> None:
    """In Laguna's experts, in one process too; what the directory does not have is missed there as well."""
    model = torch.nn.Module()
    model.experts = torch.nn.Module()
    model.experts.routed_experts = torch.nn.Module()
    model.experts.routed_experts.correction_bias = torch.nn.Parameter(torch.zeros(4))
    report = LoadReport(LayerRange(0, 1), 1, 0)
    weights = StageWeights(report)
    weights.begin(model, [])
    with pytest.raises(ConfigError, match="need the tensor experts.routed_experts.correction_bias,"):
        weights.finish(model, set(), quantized=False)
    report.names_read.add("experts.correction_bias")
    weights.finish(model, set(), quantized=False)


def test_what_a_model_makes_while_it_loads_was_not_awaited() -> None:
    """vLLM's classifiers get a bias when they find one: in no list of what they were given."""
    model = torch.nn.Module()
    model.score = torch.nn.Linear(2, 3, bias=False)
    weights = StageWeights(LoadReport(LayerRange(0, 1), 1, 0))
    weights.begin(model, [])
    model.score.bias = torch.nn.Parameter(torch.ones(3))
    weights.finish(model, {"score.weight"}, quantized=False)
    with pytest.raises(ConfigError, match="need the tensor score.weight,"):
        weights.finish(model, set(), quantized=False)
