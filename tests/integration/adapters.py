"""LoRA adapters with random weights, large enough that each changes what the embedded model says."""

from __future__ import annotations

import json
from pathlib import Path

from zmqpp.models import docs_llama

RANK = 4
_MODULES = ("q_proj", "v_proj")


def random_adapters(folder: Path) -> Path:
    """Adapters "one", "two" and "three", each in a folder of its own in `folder`."""
    for seed, name in enumerate(("one", "two", "three"), start=1):
        random_adapter(folder / name, seed)
    return folder


def random_adapter(folder: Path, seed: int) -> Path:
    """Write an adapter of all layers of the embedded model."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((docs_llama() / "config.json").read_text())
    chance = torch.Generator().manual_seed(seed)
    hidden = config["hidden_size"]
    head = hidden // config["num_attention_heads"]
    outputs = {"q_proj": hidden, "v_proj": config["num_key_value_heads"] * head}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module in _MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden, generator=chance) * 0.3
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs[module], RANK, generator=chance) * 0.3
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "docs-llama",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(_MODULES),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
