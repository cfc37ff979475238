"""Whether a model can be run the way a command was told to, as far as its config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zmqpp.checkpoint import config as config_json
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.config import layer_count
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous, even_ranges

__all__ = ["check_code_allowed", "check_files", "check_layers", "read_config"]

_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")
"""What vLLM looks for besides safetensors, unless a --load-format says otherwise."""


def read_config(model: str, flag: str = "--model") -> dict[str, Any]:
    """The config.json of what the user gave as `flag`; empty for a name to be looked up elsewhere (a hub id).

    Raises:
        ConfigError: there is no such folder, or its config.json cannot be read.
    """
    try:
        return config_json.read_config(model) or {}
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def check_layers(config: Mapping[str, Any], stages: int, ranges: Sequence[LayerRange]) -> None:
    """Raise LayerRangeError when the ranges, or that many stages, do not fit the model; unknown models pass."""
    total = layer_count(dict(config))
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


def check_files(model: str, vllm_flags: Sequence[str]) -> None:
    """Find missing weights and broken shards from the headers; names that are no folder here pass, as other formats do.

    Raises:
        ConfigError: which file, and what is wrong with it.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() or any(word.partition("=")[0] == "--load-format" for word in vllm_flags):
        return
    if any(folder.glob("*.safetensors*")):
        Checkpoint.open(str(folder))
    elif not any(any(folder.glob(pattern)) for pattern in _OTHER_WEIGHTS):
        raise ConfigError(f"{folder} has no weights, such as model.safetensors: copy them there")
