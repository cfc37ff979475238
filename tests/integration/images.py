"""A tiny model that looks at images: BLIP-2 with an OPT behind it, whose processor needs no torchvision."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from zmqpp.models import docs_llama

IMAGE_TOKEN = 2048
QUERIES = 8
SIDE = 28
LAYERS = 4


def tiny_blip2(folder: Path, seed: int = 5) -> Path:
    """Config, weights, processor; the embedded model's tokenizer with one token more."""
    import torch
    from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(seed)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "initializer_range": 0.3}
    config = Blip2Config(
        vision_config={**small, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 7},
        qformer_config={**small, "num_hidden_layers": 2, "encoder_hidden_size": 64, "vocab_size": 16},
        text_config={
            "model_type": "opt",
            **{"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 256, "vocab_size": IMAGE_TOKEN + 8},
            **{"num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 512},
            **{"init_std": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        },
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_TOKEN,
    )
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_()
        model.language_projection.weight.normal_()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(docs_llama())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE_TOKEN
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer, QUERIES
    )
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    return folder


def picture(seed: int) -> str:
    """A data URL of random colours."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def question(seed: int | None, text: str) -> dict[str, Any]:
    """A chat request about picture `seed`, or about none."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if seed is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture(seed)}})
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}


def shape_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
