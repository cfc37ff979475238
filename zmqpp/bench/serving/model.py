"""Which model is served? A Llama of about 150M random parameters: large enough that computing takes most of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["VOCABULARY", "generate"]

VOCABULARY = 32_000
_SPECIAL = ("<s>", "</s>", "<unk>")


def generate(folder: Path, layers: int = 12, hidden: int = 768) -> Path:
    """Write configuration, weights (bf16, always the same ones) and a tokenizer of made-up words into `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        initializer_range=0.06,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = LlamaForCausalLM
    model(config).to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*_SPECIAL, *(f"w{index}" for index in range(VOCABULARY - len(_SPECIAL)))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
