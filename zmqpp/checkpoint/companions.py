"""The files beside the weights: which of them each stage needs, and what its config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.config import PIPELINE_INFO, is_multi_modal
from zmqpp.layers import LayerRange
from zmqpp.version import __version__

# vLLM reads them while it builds the model.
_ON_EVERY_STAGE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "LICENSE*", "NOTICE*")
# The HTTP server reads them: text to tokens and back, defaults of sampling.
_ON_STAGE_0 = (
    *(
        "generation_config.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("*.model", "*.tiktoken", "tekken.json", "chat_template*", "*.jinja", "additional_chat_templates/*"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
# vLLM reads them for embeddings: how vectors are pooled (stage 0 says so to all), and what follows (on the last stage).
MODULES = "modules.json"
_SENTENCES = ("sentence_*_config.json", "config_sentence_transformers.json")
_OF_A_MODULE = ("config.json", "model.safetensors", "pytorch_model.bin")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def companions(checkpoint: Checkpoint, stage: int) -> dict[str, Path]:
    """Path within the stage's folder -> the file it is a copy of; links are followed."""
    patterns = list(_ON_EVERY_STAGE)
    if stage == 0 or is_multi_modal(checkpoint.config):  # A processor is built on every stage.
        patterns += _ON_STAGE_0
    if checkpoint.needs_remote_code:
        patterns.append("*.py")
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in sorted(checkpoint.folder.glob(pattern)):
            if path.is_file() and path.suffix not in _WEIGHTS:
                found[str(path.relative_to(checkpoint.folder))] = path
    modules = sentence_modules(checkpoint.folder)
    for pattern in _SENTENCES if modules else ():
        modules |= {path.name: path for path in sorted(checkpoint.folder.glob(pattern))}
    return found | modules


def sentence_modules(folder: Path) -> dict[str, Path]:
    """What sentence-transformers has beside the model: its list of modules, and a folder for each; path -> file."""
    try:
        modules = json.loads((folder / MODULES).read_bytes())
        named = [module["path"] for module in modules]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    paths = [folder / MODULES]
    for name in named:
        if isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name:
            paths += [folder / name / file for file in _OF_A_MODULE]
    return {str(path.relative_to(folder)): path for path in paths if path.is_file()}


def stage_config(checkpoint: Checkpoint, ranges: list[LayerRange], stage: int) -> bytes:
    """config.json of a stage: the model's own, and what part of it this is."""
    pipeline: dict[str, Any] = {
        "stage_idx": stage,
        "total_stages": len(ranges),
        "start_layer": ranges[stage].start,
        "end_layer": ranges[stage].end,
        "total_layers": checkpoint.total_layers,
        "source": checkpoint.name,
        "zmqpp_version": __version__,
    }
    config = {**checkpoint.config, PIPELINE_INFO: pipeline}
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
