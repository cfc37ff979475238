"""Tiny models with random weights, made on the spot; they borrow the embedded model's tokenizer."""

from __future__ import annotations

import json
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


def int8_copy(model: Path, folder: Path) -> Path:
    """The model with int8 weights and activations, as compressed-tensors keeps them: a scale a row."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.suffix in (".json", ".jinja") and "index" not in path.name:
            shutil.copy(path, folder)
    tensors = {}
    for path in sorted(model.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if name.endswith("_proj.weight"):
                scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
                tensors[f"{name}_scale"] = scale
                tensor = (tensor.float() / scale).round().clamp(-128, 127).to(torch.int8)
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {
                    **{"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"},
                    "dynamic": True,
                },
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
