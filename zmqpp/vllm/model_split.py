"""Models that vLLM says it can split over pipeline stages, and cannot.

Its transformers backend takes the embeddings of tokens from all stages but the first, and the model's own `forward`
runs on each. What that does in front of its layers beside embedding tokens is then done once a stage: embeddings of
positions are added again, embeddings are scaled again. Without a check tokens would be wrong, and nothing would say so.
Some models of vLLM's own reach for a module that is on another stage.

Thread: any. Source: Base.pipeline_parallel, Base.forward (vllm/model_executor/models/transformers/base.py);
PPMissingLayer (vllm/model_executor/models/utils.py).
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zmqpp._shown import one_line
from zmqpp.checkpoint.pipelining import cannot_split
from zmqpp.errors import ConfigError

__all__ = ["check_transformers_split", "said_in_words"]

_SCALE = "embedding_multiplier"
"""Of the Granite family: transformers applies it to embeddings wherever they come from."""
_NO_EXPERTS = re.compile(r"No \w+ layer found in ")
"""Of GLM 4 MoE and others, whose first layers are dense."""


def check_transformers_split(model: torch.nn.Module, stage: int) -> None:
    """Of a model as vLLM has built it for this stage, before its weights are read.

    Raises:
        ConfigError: it does more than embed tokens before its layers.
    """
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(inner, "supports_pp_plan"):
        return  # one of vLLM's own
    decoder = inner.get_decoder()
    if more := _more_than_tokens(inner, decoder):
        reason = f"through its transformers backend every stage would {more}"
        raise ConfigError(f"stage {stage}: {cannot_split(type(decoder).__name__, reason)}")


@contextmanager
def said_in_words(model: str, stage: int) -> Iterator[None]:
    """Around what builds `model`'s part of a stage.

    Raises:
        ConfigError: it wants a module that another stage has, or a layer of which this stage has none. Whatever else is
            raised inside.
    """
    try:
        yield
    except AttributeError as error:
        if "PPMissingLayer" not in str(error):
            raise
        reason = f"its code there wants what is on another stage ({one_line(error)})"
        raise ConfigError(f"stage {stage}: {cannot_split(model, reason)}") from error
    except RuntimeError as error:
        if not _NO_EXPERTS.match(str(error)):
            raise
        raise ConfigError(
            f"stage {stage}: vLLM wants a layer with experts on every stage of {model}, and this stage has none "
            f"({one_line(error)}); choose other ranges of layers"
        ) from error


def _more_than_tokens(inner: Any, decoder: Any) -> str:
    if getattr(decoder.config, _SCALE, None) not in (None, 1):
        return f"scale what it is sent by the model's {_SCALE}"
    front = [] if inner.supports_pp_plan else _in_front_of_layers(decoder)
    if len(front) > 1:
        return f"apply {' and '.join(front)} to what it is sent"
    done = _done_in_front_of_layers(type(decoder))
    return f"run `{done[0]}` on what it is sent" if done else ""


def _in_front_of_layers(decoder: torch.nn.Module) -> list[str]:
    """Modules with weights, also those that are on another stage."""
    from vllm.model_executor.models.utils import PPMissingLayer

    front: list[str] = []
    for name, child in decoder.named_children():
        if isinstance(child, torch.nn.ModuleList):
            return front
        if isinstance(child, PPMissingLayer) or next(child.parameters(), None) is not None:
            front.append(name)
    return []


_CARRIED = ("hidden_states", "inputs_embeds")
_NOTHING = re.compile(rf"drop|input_ids|{_SCALE}")
"""Dropout does nothing where nobody trains, ids come to the first stage alone; the scale is judged by its value."""


def _done_in_front_of_layers(decoder: type) -> list[str]:
    """What its `forward` makes of embeddings that it is given, before it comes to its layers."""
    try:
        (forward,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(decoder.forward)))).body
    except (AttributeError, OSError, TypeError, SyntaxError, ValueError):
        return []  # code without a source is judged by its modules alone
    done: list[str] = []
    for statement in getattr(forward, "body", ()):
        if isinstance(statement, ast.For):
            return done
        if isinstance(statement, ast.Assign | ast.AugAssign) and _changes(statement):
            done.append(ast.unparse(statement))
    return []


def _changes(statement: ast.Assign | ast.AugAssign) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    if not any(isinstance(target, ast.Name) and target.id in _CARRIED for target in targets):
        return False
    is_same = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
    return not is_same and not _NOTHING.search(ast.unparse(statement.value))
