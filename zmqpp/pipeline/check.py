"""`zmqpp check`: what is to be checked, with which flags, and whether two answers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.config import layer_count
from zmqpp.checkpoint.fit import check_layers, read_config
from zmqpp.checkpoint.split import find_split
from zmqpp.errors import ConfigError, RemoteError
from zmqpp.layers import LayerRange

__all__ = ["Answer", "Difference", "Subject", "ask", "compare", "default_flags", "read_subject"]

_MAX_LEN = 1024
"""Positions a check needs at most, unless the user asks for more: test inputs are short."""
_LEAST_KV_BYTES = 256 << 20


@dataclass(frozen=True)
class Subject:
    """What is checked: a full model, or one folder a stage."""

    model: str
    total: int
    config: dict[str, Any]
    ranges: tuple[LayerRange, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One greedy completion; `tokens` are the texts of `token_ids`."""

    text: str
    token_ids: list[int]
    tokens: list[str]
    prompt_token_ids: list[int]
    margins: list[float]
    """How much likelier each token was than the second best; natural logarithm."""


@dataclass(frozen=True)
class Difference:
    """The first token in which two answers differ; None where one has ended."""

    index: int
    here: str | None
    there: str | None
    margin: float | None


def read_subject(folder: Path, stages: int | None, ranges: Sequence[LayerRange]) -> Subject:
    """Look at DIR, and at how the user wants it cut.

    Raises:
        ConfigError: it is no model and no split, or cannot be cut this way.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a split made by `zmqpp export`, or a model")
    if split := find_split(folder):
        _check_asked(folder, len(split), list(split.ranges), stages, ranges)
        return Subject(
            model=str(folder),
            total=len(split),
            config=split.config,
            models=tuple(str(path) for path in split.models),
        )
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} has neither stage_0, stage_1, ... nor config.json: it is no split and no model"
        )
    config = read_config(str(folder), "model")
    total = stages or len(ranges)
    if not total:
        raise ConfigError(f"{folder} is a full model: say how to cut it, --num-stages N or --ranges A-B ...")
    if total < 2 or (ranges and len(ranges) != total):
        raise ConfigError(
            f"{total} stages and {len(ranges)} ranges: give at least 2 stages, and a range for each"
        )
    check_layers(config, total, ranges)
    return Subject(str(folder), total, config, tuple(ranges))


def _check_asked(
    folder: Path, total: int, have: list[LayerRange], stages: int | None, ranges: Sequence[LayerRange]
) -> None:
    if stages is not None and stages != total:
        raise ConfigError(f"--num-stages {stages}: {folder} is a split into {total} stages")
    if ranges and list(ranges) != have:
        raise ConfigError(f"--ranges: {folder} was split into {' '.join(map(str, have))}; leave --ranges out")


def default_flags(subject: Subject, dtype: str | None, given: Sequence[str]) -> tuple[str, ...]:
    """`vllm serve` flags for a short test, less those that the user gives himself; then those."""
    length = min(_MAX_LEN, int(subject.config.get("max_position_embeddings") or _MAX_LEN))
    defaults = {
        "--dtype": dtype,
        "--enforce-eager": "",
        "--max-model-len": str(length),
        "--max-num-seqs": "4",
        "--kv-cache-memory-bytes": str(_kv_bytes(subject.config, length)),
    }
    names = {word.partition("=")[0] for word in given}
    if "--max-model-len" in names:
        del defaults["--kv-cache-memory-bytes"]  # more positions than we have counted with
    chosen = [(name, value) for name, value in defaults.items() if value is not None and name not in names]
    return tuple(word for pair in chosen for word in pair if word) + tuple(given)


def _kv_bytes(config: dict[str, Any], length: int) -> int:
    """Room for two requests of that length in float32, were all layers in one process."""
    try:
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or config["hidden_size"] // heads)
        layers = layer_count(config) or 0
        return max(
            _LEAST_KV_BYTES,
            2 * length * layers * 2 * int(config.get("num_key_value_heads") or heads) * size * 4,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return _LEAST_KV_BYTES


def ask(url: str, model: str, prompt: str, max_tokens: int, timeout_s: float = 300.0) -> Answer:
    """One greedy completion with its token ids.

    Raises:
        RemoteError: the server refused it, failed, or went away.
    """
    import httpx

    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    body |= {"logprobs": 2, "return_token_ids": True}
    try:
        response = httpx.post(f"{url}/v1/completions", json=body, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError as error:
        raise RemoteError(f"{url}/v1/completions: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise RemoteError(f"the test input was answered {response.status_code}: {response.text[:300]}")
    choice = response.json()["choices"][0]
    logprobs = choice["logprobs"]
    return Answer(
        text=choice["text"],
        token_ids=choice["token_ids"],
        tokens=logprobs["tokens"],
        prompt_token_ids=choice["prompt_token_ids"],
        margins=[_margin(top) for top in logprobs["top_logprobs"]],
    )


def _margin(top: dict[str, float]) -> float:
    first, *others = sorted(top.values(), reverse=True)
    return first - others[0] if others else float("inf")


def compare(here: Answer, there: Answer) -> Difference | None:
    """None when the token ids are the same, those of the prompt included.

    Raises:
        ConfigError: the prompts became different tokens: the two models do not belong together.
    """
    if here.prompt_token_ids != there.prompt_token_ids:
        raise ConfigError(
            "the test input becomes other tokens in the model compared with: its tokenizer is another"
        )
    for index in range(max(len(here.token_ids), len(there.token_ids))):
        mine, theirs = here.token_ids[index : index + 1], there.token_ids[index : index + 1]
        if mine != theirs:
            return Difference(
                index,
                here.tokens[index] if mine else None,
                there.tokens[index] if theirs else None,
                there.margins[index] if theirs else None,
            )
    return None
