"""What a model's config.json says before vLLM reads it: how many layers, whose code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous, even_ranges

__all__ = ["check_code_allowed", "check_layers", "layer_count", "read_config"]

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""In the order of how common they are; see the configuration classes of Hugging Face transformers."""


def read_config(model: str, flag: str = "--model") -> dict[str, Any]:
    """The model's config.json; empty for a name to be looked up elsewhere (a hub id).

    Raises:
        ConfigError: there is no such folder, or its config.json cannot be read.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or folder.is_file():
            raise ConfigError(f"{flag} {model}: no such folder")
        return {}
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {model}: its config.json cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{flag} {model}: its config.json cannot be read (it is not a JSON object)")
    return config


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Hidden layers named in a config.json; None when it takes vLLM to tell."""
    for holder in (config, config.get("text_config") or {}):
        for key in _LAYER_KEYS:
            if type(holder.get(key)) is int:
                return int(holder[key])
    return None


def check_layers(config: Mapping[str, Any], stages: int, ranges: Sequence[LayerRange]) -> None:
    """Raise LayerRangeError when the ranges, or that many stages, do not fit the model; unknown models pass."""
    total = layer_count(config)
    if total is None:
        return
    if ranges:
        check_contiguous(ranges, total)
    else:
        even_ranges(total, stages)


def check_code_allowed(config: Mapping[str, Any], model: str, vllm_flags: Sequence[str]) -> None:
    """Raise ConfigError when the model brings Python code of its own, and nobody has allowed it to run."""
    if config.get("auto_map") and "--trust-remote-code" not in vllm_flags:
        raise ConfigError(
            f"{model} brings Python code of its own (auto_map in its config.json), which vLLM runs only when you "
            "trust it: read that code, then add --trust-remote-code"
        )
