"""More families of tiny random models: what `test_loading.py` loads and does not run."""

from __future__ import annotations

from tests.integration.architectures import ARCHITECTURES, LAYERS, POSITIONS, VOCABULARY, Architecture

_HEAD = {"head_dim": 32}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
}
_GROUPS = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_LATENT = {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Architecture] = {
    **{name: one for name, one in ARCHITECTURES.items() if not one.flags},
    "Apertus": Architecture("ApertusConfig", "ApertusForCausalLM"),
    "Arcee": Architecture("ArceeConfig", "ArceeForCausalLM"),
    "Cohere": Architecture("CohereConfig", "CohereForCausalLM"),
    "DeepSeek V2": Architecture(
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            **_LATENT,
            **_ROUTED,
            **_GROUPS,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "num_key_value_heads": 4,
        },
    ),
    "dots.llm1": Architecture("Dots1Config", "Dots1ForCausalLM", {**_HEAD, **_ROUTED, **_GROUPS}),
    "ERNIE 4.5": Architecture("Ernie4_5Config", "Ernie4_5ForCausalLM"),
    "EXAONE 4": Architecture(
        "Exaone4Config", "Exaone4ForCausalLM", {"sliding_window": 64, "sliding_window_pattern": 2}
    ),
    "Falcon, new": Architecture(
        "FalconConfig",
        "FalconForCausalLM",
        {"ffn_hidden_size": 512, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "FlexOlmo": Architecture("FlexOlmoConfig", "FlexOlmoForCausalLM", _EXPERTS),
    "Gemma": Architecture("GemmaConfig", "GemmaForCausalLM", _HEAD),
    "GLM": Architecture("GlmConfig", "GlmForCausalLM", _HEAD),
    "GLM 4 MoE": Architecture(
        "Glm4MoeConfig", "Glm4MoeForCausalLM", {**_HEAD, **_ROUTED, **_GROUPS, "first_k_dense_replace": 0}
    ),
    "gpt-oss": Architecture("GptOssConfig", "GptOssForCausalLM", {**_HEAD, **_LOCAL, "sliding_window": 64}),
    "GPT-J": Architecture("GPTJConfig", "GPTJForCausalLM", {**_GPT, "rotary_dim": 16}, sizes=False),
    "GPT-NeoX": Architecture(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {
            **{"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256},
            **{"num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": POSITIONS},
        },
        sizes=False,
    ),
    "Granite MoE": Architecture("GraniteMoeConfig", "GraniteMoeForCausalLM", _LOCAL),
    "Granite MoE, shared": Architecture(
        "GraniteMoeSharedConfig", "GraniteMoeSharedForCausalLM", {**_LOCAL, "shared_intermediate_size": 64}
    ),
    "HunYuan": Architecture("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", _HEAD),
    "Llama 4": Architecture(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **{**_HEAD, **_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 256},
            **{"interleave_moe_layer_step": 2, "attention_chunk_size": 64},
        },
    ),
    "Nemotron": Architecture("NemotronConfig", "NemotronForCausalLM"),
    "OLMo": Architecture("OlmoConfig", "OlmoForCausalLM"),
    "OLMo 3": Architecture("Olmo3Config", "Olmo3ForCausalLM", {"sliding_window": 64}),
    "OLMoE": Architecture("OlmoeConfig", "OlmoeForCausalLM", _EXPERTS),
    "OPT, projected": Architecture(
        "OPTConfig",
        "OPTForCausalLM",
        {"ffn_dim": 256, "word_embed_proj_dim": 64, "do_layer_norm_before": False},
    ),
    "Persimmon": Architecture("PersimmonConfig", "PersimmonForCausalLM"),
    "Seed-OSS": Architecture("SeedOssConfig", "SeedOssForCausalLM", _HEAD),
    "SmolLM 3": Architecture("SmolLM3Config", "SmolLM3ForCausalLM"),
    "Starcoder 2": Architecture("Starcoder2Config", "Starcoder2ForCausalLM"),
}
