"""Model folders made on the spot: config.json and safetensors files of random numbers, named as several families do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from zmqpp.cli import main

HIDDEN, VOCAB = 8, 16


def llama_names(layers: int, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Name -> shape, as Llama and Qwen have them."""
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        names[f"model.layers.{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        names[f"model.layers.{layer}.mlp.up_proj.weight"] = (2 * HIDDEN, HIDDEN)
        names[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    names["model.norm.weight"] = (HIDDEN,)
    return names if tied else {**names, "lm_head.weight": (VOCAB, HIDDEN)}


def large_head(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama whose head weighs as much as two to three of its layers."""
    return {**llama_names(layers), "lm_head.weight": (4 * VOCAB, HIDDEN)}


def config_of(layers: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    """A config.json of a small Qwen3; `more` replaces or adds, None removes."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": layers,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "dtype": "bfloat16",
        "tie_word_embeddings": tied,
        **more,
    }
    return {key: value for key, value in config.items() if value is not None}


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """Config, weights in `shards` files with an index, and a tokenizer that nobody reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {name: random.integers(0, 99, shape).astype(dtype) for name, shape in shapes.items()}
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text(
            json.dumps({"file": name})
        )  # no two alike: a hub client fetches equal files once
    return folder


def qwen(folder: Path, layers: int = 6, tied: bool = True, shards: int = 3, **more: Any) -> Path:
    """A Qwen3 in several shards, with tied embeddings unless told otherwise."""
    return write_model(folder, config_of(layers, tied, **more), llama_names(layers, tied), shards)


def tensors_of(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Each folder's tensors as the safetensors package reads them."""
    found = []
    for folder in folders:
        tensors: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
        found.append(tensors)
    return found


def export(model: Path, out: Path, *more: str) -> int:
    """Exit code of `zmqpp export`, whether argparse exits or main returns."""
    try:
        return main(["export", "--model", str(model), "--output-dir", str(out), *more])
    except SystemExit as stop:
        return int(stop.code or 0)


def stages(out: Path) -> list[Path]:
    return sorted(out.glob("stage_*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
