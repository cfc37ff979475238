"""A model's config.json: how many layers, whether its ends share a tensor, and what an export wrote into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange

PIPELINE_FILE = "pipeline.json"
"""The last file that `zmqpp export` writes: with it the export is whole. See manifest.py."""
CHECKSUMS = "zmqpp_checksums.json"
"""Beside a stage's shards: file -> tensor -> checksum, so that it can be checked wherever it is copied to."""
PIPELINE_INFO = "_pipeline_info"
"""Key that `zmqpp export` writes into a stage directory's config.json."""

_TEXT_PARTS = ("text_config", "llm_config", "language_config")
"""Where multi-modal models keep the configuration of their decoder."""


def source_fingerprint(folder: Path) -> str:
    """Of the model that an exported stage was made from; empty where the folder does not tell."""
    try:
        found = json.loads((folder / CHECKSUMS).read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def read_config(model: str) -> dict[str, Any] | None:
    """The model's config.json; None for a name that is not a directory here (a hub id).

    Raises:
        ConfigError: a directory without a readable config.json.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        looks_local = folder.is_absolute() or model.startswith((".", "~")) or model.endswith("/")
        if looks_local or model.count("/") > 1 or folder.is_file():
            raise ConfigError(
                f"there is no model directory {model}: give a Hugging Face model directory or a hub id"
            )
        return None
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no config.json: give a Hugging Face model directory or a hub id"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} cannot be read: it is not a JSON object")
    return config


def layer_count(config: dict[str, Any]) -> int | None:
    """Hidden layers named in a config.json; None when it takes vLLM to tell."""
    for holder in _holders(config):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if type(holder.get(key)) is int:
                return int(holder[key])
    return None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's own part of the configuration: `config`, or the nest of a multi-modal model."""
    for part in _TEXT_PARTS:
        if isinstance(config.get(part), dict):
            return {**config, **config[part]}
    return config


def is_multi_modal(config: dict[str, Any]) -> bool:
    """Whether the model takes more than text, and so a processor on every stage."""
    return any(isinstance(config.get(part), dict) for part in (*_TEXT_PARTS, "vision_config", "audio_config"))


def says_tied(config: dict[str, Any]) -> bool | None:
    """`tie_word_embeddings`: true if it is anywhere, None when it stands nowhere."""
    said = [holder.get("tie_word_embeddings") for holder in _holders(config)]
    found = [value for value in said if isinstance(value, bool)]
    return any(found) if found else None


def _holders(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for part in _TEXT_PARTS:
        if isinstance(config.get(part), dict):
            yield config[part]


@dataclass(frozen=True)
class ExportedStage:
    """What `_pipeline_info` says: this folder holds only `layers`, as stage `stage` of `stages`."""

    stage: int
    stages: int
    layers: LayerRange


def exported_stage(config: dict[str, Any]) -> ExportedStage | None:
    """The stage that a folder was exported as; None for a full model.

    Raises:
        ConfigError: malformed.
    """
    info = config.get(PIPELINE_INFO)
    if info is None:
        return None
    wanted = ("stage_idx", "total_stages", "start_layer", "end_layer")
    if not isinstance(info, dict) or any(type(info.get(key)) is not int for key in wanted):
        raise ConfigError(
            f"{PIPELINE_INFO} in config.json must hold the integers {', '.join(wanted)}; it is {info!r}"
        )
    layers = LayerRange.parse(f"{info['start_layer']}-{info['end_layer']}")
    return ExportedStage(info["stage_idx"], info["total_stages"], layers)
