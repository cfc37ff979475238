"""Tiny models with random weights, made on the spot; they borrow the embedded model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from zmqpp.models import docs_llama

LAYERS = 5


def tiny_qwen3(folder: Path) -> Path:
    """A Qwen3 of 5 layers with tied embeddings, in several safetensors shards."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size="600KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(docs_llama() / name, folder)
    return folder


def split(model: Path, folder: Path, ranges: list[tuple[int, int]]) -> list[Path]:
    """One directory a stage, with only its tensors and `_pipeline_info`, as `zmqpp export` will write them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    folders = []
    for index, (start, end) in enumerate(ranges):
        mine = {name: tensor for name, tensor in tensors.items() if _belongs(name, start, end, config)}
        info = {"stage_idx": index, "total_stages": len(ranges), "start_layer": start, "end_layer": end}
        target = folder / f"stage_{index}"
        shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(mine, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps({**config, "_pipeline_info": info}))
        folders.append(target)
    return folders


def _belongs(name: str, start: int, end: int, config: dict[str, Any]) -> bool:
    if name.startswith("model.layers."):
        return start <= int(name.split(".")[2]) < end
    return start == 0 if "embed" in name else end == config["num_hidden_layers"]
