"""What the names of tensors say: which belong to a layer of the decoder, which to its two ends."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum

LAYER = re.compile(r"^(?P<list>(?:[^.]+\.)*?[^.\d][^.]*)\.(?P<index>\d+)\.")
EXPERT = re.compile(r"^(?P<list>.+\.experts)\.(?P<index>\d+)\.(?P<rest>.+)$")
_OTHER_TOWERS = re.compile(r"vis|audio|image|speech|encoder")

_EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"})
_HEADS = frozenset({"lm_head", "embed_out", "output", "output_layer"})
_FINAL_NORMS = frozenset({"norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "embedding_norm"})


class Role(Enum):
    """What a tensor outside the decoder's layers is for."""

    EMBEDDING = "embedding"
    FINAL_NORM = "final norm"
    HEAD = "head"
    OTHER = "other"


def layer_lists(names: Iterable[str]) -> dict[str, set[int]]:
    """Module lists in tensor names, `model.layers` -> {0, 1, ..}, without those of other towers."""
    lists = all_layer_lists(names)
    return {name: held for name, held in lists.items() if not _OTHER_TOWERS.search(name)}


def all_layer_lists(names: Iterable[str]) -> dict[str, set[int]]:
    """`layer_lists` with the towers."""
    lists: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := LAYER.match(name):
            lists[match["list"]].add(int(match["index"]))
    return dict(lists)


def decoder_list(names: Iterable[str], total_layers: int) -> str | None:
    """The module list of the transformer's layers: the longest one that fits the model."""
    return longest_list(layer_lists(names), total_layers)


def longest_list(lists: dict[str, set[int]], total_layers: int) -> str | None:
    """Of the lists with indices below `total_layers`, the one with the most; the shorter name of two."""
    fitting = {name: held for name, held in lists.items() if max(held) < total_layers}
    return max(fitting, key=lambda name: (len(fitting[name]), -len(name)), default=None)


def layer_of(name: str, decoder: str) -> int | None:
    """The tensor's layer in the decoder; None when it lies outside."""
    match = LAYER.match(name)
    return int(match["index"]) if match and match["list"] == decoder else None


def role_of(name: str, decoder: str) -> Role:
    """The role of a tensor outside the layers.

    Only modules beside the decoder's list, or at the top, count: `vision.norm.weight` is no final norm.
    """
    module, _, last = name.rpartition(".")
    holder, _, word = module.rpartition(".")
    if not module:
        word, holder = last, ""
    beside = decoder.rpartition(".")[0]
    if holder not in ("", beside) and not _is_outer(holder, beside):
        return Role.OTHER
    for role, words in _WORDS.items():
        if word in words:
            return role
    return Role.OTHER


def _is_outer(holder: str, beside: str) -> bool:
    """`language_model` of `language_model.model.layers`."""
    return beside.startswith(f"{holder}.")


_WORDS = {Role.EMBEDDING: _EMBEDDINGS, Role.HEAD: _HEADS, Role.FINAL_NORM: _FINAL_NORMS}
