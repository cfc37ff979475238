"""Classifiers that vLLM makes of rows of a language model's head while it loads, as of Qwen3-Reranker's "no" and "yes".

vLLM makes them on every stage, though only the last one classifies, and the head is there alone; and from the ids of
words, for which it asks the tokenizer of the stage's own directory.

Thread: the stage's main thread. Source: as_seq_cls_model, load_weights_using_from_2_way_softmax,
load_weights_no_post_processing (vllm/model_executor/models/adapters.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zmqpp.errors import ConfigError

__all__ = ["is_made_of_head", "load_without", "with_head"]

_HEAD, _SCORE = "lm_head.", "score.weight"
_SAID = ("classifier_from_token", "method")
_VOCABULARIES = ("tokenizer*", "vocab*", "*.tiktoken", "tekken.json")


def is_made_of_head(model: torch.nn.Module, model_config: Any) -> bool:
    """Whether vLLM makes `model`'s classifier when it loads."""
    return hasattr(model, "score") and any(said is not None for said in _said(model_config))


def _said(model_config: Any) -> list[Any]:
    """The words, and how the classifier is made of them."""
    config = model_config.hf_config
    text = config.get_text_config()
    return [getattr(config, name, getattr(text, name, None)) for name in _SAID]


def with_head(elsewhere: list[str], model_config: Any, stage: int) -> list[str]:
    """Of the modules that the last stage does not have those whose tensors it does not read either.

    Raises:
        ConfigError: its directory has no tokenizer; a later stage of an export needs none but for this.
    """
    folder = Path(model_config.tokenizer)
    if folder.is_dir() and not any(path for name in _VOCABULARIES for path in folder.glob(name)):
        raise ConfigError(
            f"stage {stage}: the classifier is made of the head's rows for the words {_said(model_config)[0]}, and "
            f"{folder} has no tokenizer that knows them: copy tokenizer.json and tokenizer_config.json there from "
            f"stage 0's directory"
        )
    return [name for name in elsewhere if not name.endswith(_HEAD)]


def load_without(model_config: Any, load: Callable[[Any], set[str] | None], weights: Any) -> set[str] | None:
    """What `load(weights)` gives on a stage that is not the last one: as if the classifier had weights of its own."""
    with _own_weights(model_config):
        loaded = load(weights)
    return loaded if loaded is None else {*loaded, _SCORE}


@contextmanager
def _own_weights(model_config: Any) -> Iterator[None]:
    configs = (model_config.hf_config, model_config.hf_config.get_text_config())
    before = [
        (config, name, getattr(config, name)) for config in configs for name in _SAID if hasattr(config, name)
    ]
    try:
        for config, name, _ in before:
            setattr(config, name, None)
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)
