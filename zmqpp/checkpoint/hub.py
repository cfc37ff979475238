"""A model by its hub id: fetched once into the Hugging Face cache, only the files that are needed."""

from __future__ import annotations

import re
from pathlib import Path

from zmqpp.errors import ConfigError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATTERNS = ["*.safetensors", "*.json", "*.py", "*.model", "*.txt", "*.tiktoken", "*.jinja", "LICENSE*"]
_PATTERNS += ["*_Dense/pytorch_model.bin"]  # of sentence-transformers, which vLLM reads either way
_UNNEEDED = ["original/*", "onnx/*", "consolidated*"]


def fetch(model: str) -> Path:
    """The folder of a hub id's files, downloaded if they are not there yet.

    Raises:
        ConfigError: no such model, no network, or no access.
    """
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"there is no model directory {model}, and it is not a hub id such as org/name")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ConfigError(
            f"there is no model directory {model}; to fetch a hub id: pip install 'zmqpp[cli]'"
        ) from None
    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS, ignore_patterns=_UNNEEDED))
    except Exception as error:  # Its own errors, httpx's and the file system's have no common base.
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise ConfigError(
            f"there is no model directory {model}, and it cannot be fetched from the hub: {reason}"
        ) from None
