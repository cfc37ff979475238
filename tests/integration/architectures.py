"""Tiny random models of many families, which share nothing but the embedded model's tokenizer."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zmqpp.models import docs_llama

VOCABULARY = 2048
POSITIONS = 512
LAYERS = 4
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_COMMON = {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@dataclass(frozen=True)
class Architecture:
    """How to make one.

    Attributes:
        config: class of transformers.
        model: class of transformers, with the head.
        settings: for the config, beside the common ones.
        sizes: false where the family calls them otherwise, and `settings` has them all.
        flags: for `vllm serve`, on every stage.
    """

    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: bool = True
    flags: tuple[str, ...] = ()

    @property
    def settings_of_vllm(self) -> dict[str, str | int]:
        """`flags` as settings of `LLM`."""
        words = iter(self.flags)
        return {
            word.removeprefix("--").replace("-", "_"): int(value) if value.isdigit() else value
            for word, value in zip(words, words, strict=True)
        }

    def write(self, folder: Path, seed: int = 11) -> Path:
        """Config, safetensors in several shards, and the tokenizer."""
        import torch
        import transformers

        torch.manual_seed(seed)
        given = {**(_SIZES if self.sizes else {}), **_COMMON, **self.settings}
        config = getattr(transformers, self.config)(**given)
        model = getattr(transformers, self.model)(config)
        _disturb(model)
        model.save_pretrained(folder, max_shard_size="300KB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(docs_llama() / name, folder)
        return folder


def _disturb(model: Any) -> None:
    """Biases and norms too: at their initial 0 and 1 it would not show that they were never loaded."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.endswith(("A_log", "dt_bias", ".D")):
                parameter.add_(torch.randn_like(parameter) * 0.1)


ARCHITECTURES: dict[str, Architecture] = {
    "GPT-2": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS},
        sizes=False,
    ),
    "OPT": Architecture(
        "OPTConfig",
        "OPTForCausalLM",
        {"ffn_dim": 256, "word_embed_proj_dim": 128, "init_std": 0.2},
    ),
    "Qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM"),
    "Qwen2 tied": Architecture("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "Gemma 2": Architecture("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 32, "sliding_window": 64}),
    "Gemma 3": Architecture("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 32, "sliding_window": 64}),
    "Gemma 4": Architecture(
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            **{"head_dim": 32, "sliding_window": 64, "num_kv_shared_layers": 0},
            **{"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": VOCABULARY},
        },
    ),
    "Mixtral": Architecture(
        "MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "Qwen3 MoE": Architecture(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "Qwen2 MoE": Architecture(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
            "shared_expert_intermediate_size": 64,
        },
    ),
    "Phi": Architecture("PhiConfig", "PhiForCausalLM", {"num_key_value_heads": 4}),
    "Phi 3": Architecture("Phi3Config", "Phi3ForCausalLM"),
    "StableLM": Architecture("StableLmConfig", "StableLmForCausalLM"),
    "Falcon": Architecture(
        "FalconConfig",
        "FalconForCausalLM",
        {"ffn_hidden_size": 512, "multi_query": True, "parallel_attn": True},
    ),
    "BLOOM": Architecture(
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 128, "n_layer": LAYERS, "n_head": 4},
        sizes=False,
    ),
    "Granite": Architecture(
        "GraniteConfig",
        "GraniteForCausalLM",
        {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    ),
    "Cohere 2": Architecture("Cohere2Config", "Cohere2ForCausalLM", {"sliding_window": 64}),
    "OLMo 2": Architecture("Olmo2Config", "Olmo2ForCausalLM"),
    "GLM 4": Architecture("Glm4Config", "Glm4ForCausalLM", {"head_dim": 32}),
    "MiniCPM 3": Architecture(
        "MiniCPM3Config",
        "MiniCPM3ForCausalLM",
        {
            **{"num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 32},
            **{"qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32},
        },
    ),
    "transformers backend": Architecture(
        "LlamaConfig", "LlamaForCausalLM", flags=("--model-impl", "transformers")
    ),
}

SPLIT_WRONG: dict[str, tuple[Architecture, str]] = {
    "positions": (
        Architecture(
            "GPTBigCodeConfig",
            "GPTBigCodeForCausalLM",
            {
                **{"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": LAYERS},
                **{"n_head": 4, "n_positions": POSITIONS},
            },
            sizes=False,
        ),
        "through its transformers backend every stage would apply wte and wpe to what it is sent",
    ),
    "scale": (
        Architecture(
            "GraniteConfig",
            "GraniteForCausalLM",
            {"embedding_multiplier": 2.0},
            flags=("--model-impl", "transformers"),
        ),
        "through its transformers backend every stage would scale what it is sent by the model's embedding_multiplier",
    ),
    "norm": (
        Architecture("NanoChatConfig", "NanoChatForCausalLM"),
        "through its transformers backend every stage would run `hidden_states = self.norm",
    ),
    "tied": (
        Architecture(
            "Ernie4_5_MoeConfig",
            "Ernie4_5_MoeForCausalLM",
            {
                **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
                **{"moe_num_shared_experts": 1, "moe_layer_start_index": 1},
            },
        ),
        "its code there wants what is on another stage",
    ),
}
"""Models that vLLM cannot split, and does not know it; and why."""

HYBRID = Architecture(
    "Lfm2MoeConfig",
    "Lfm2MoeForCausalLM",
    {
        "layer_types": ["conv", "full_attention"] * (LAYERS // 2),
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_dense_layers": 0},
    },
    flags=("--max-num-seqs", "1"),
)
"""Short convolutions and attention. One request at a time: of several, one process's tokens depend on their batch."""
