"""Tiny models with random weights, made on the spot; they borrow the embedded model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.export import Export
from zmqpp.layers import LayerRange
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
    """One directory a stage, as `zmqpp export` writes them."""
    layers = [LayerRange(start, end) for start, end in ranges]
    manifest = Export(Checkpoint.open(str(model)), layers, folder).run()
    return [folder / name for name in manifest.folders]
