"""Gemma 4's inputs of single layers, which the first stage computes and all others need.

vLLM sends them along, and leaves them aside where they arrive: its model takes them only where its caller has some too,
and on later stages no caller has. Without them tokens would be wrong, and nothing would say so.

Thread: any, before the first step. Source: Gemma4Model.forward (vllm/model_executor/models/gemma4.py).
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["take_layer_inputs"]

_MODEL, _INPUTS, _TENSORS = "Gemma4Model", "per_layer_inputs", "intermediate_tensors"
_PLACE = 2
"""Of _TENSORS among the arguments, where it is given without its name."""
_OURS = "zmqpp_takes_layer_inputs"


def take_layer_inputs(model: torch.nn.Module, stage: int) -> None:
    """Of a model as vLLM has built it for this stage: it computes with what was sent. Safe to call twice."""
    kinds = {type(module) for module in model.modules()} if stage else set()
    for kind in kinds:
        if kind.__name__ == _MODEL and not hasattr(kind.__call__, _OURS):
            kind.__call__ = _with_inputs(kind.__call__)  # type: ignore[method-assign]


def _with_inputs(call: Any) -> Any:
    def call_with_inputs(self: Any, *args: Any, **named: Any) -> Any:
        tensors = named.get(_TENSORS) or (args[_PLACE] if len(args) > _PLACE else None)
        if tensors is not None and named.get(_INPUTS) is None and _INPUTS in tensors.tensors:
            named[_INPUTS] = tensors[_INPUTS]
        return call(self, *args, **named)

    setattr(call_with_inputs, _OURS, True)
    return call_with_inputs
