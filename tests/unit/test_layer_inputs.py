"""Inputs of single layers that the first stage has sent reach the model of a later one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zmqpp.vllm.layer_inputs import take_layer_inputs


def _models() -> tuple[torch.nn.Module, Any]:
    class Gemma4Model(torch.nn.Module):
        def forward(
            self,
            input_ids: Any,
            positions: Any,
            intermediate_tensors: Any,
            embeds: Any = None,
            per_layer_inputs: Any = None,
        ) -> Any:
            return per_layer_inputs

    outer = torch.nn.Module()
    outer.model = Gemma4Model()
    return outer, outer.model


class Tensors(SimpleNamespace):
    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]


SENT = Tensors(tensors={"hidden_states": 1, "per_layer_inputs": 2})


@pytest.mark.parametrize("times", [1, 2])
def test_a_later_stage_computes_with_what_was_sent(times: int) -> None:
    outer, model = _models()
    for _ in range(times):
        take_layer_inputs(outer, 1)
    assert model(None, None, SENT) == 2
    assert model(None, None, intermediate_tensors=SENT, per_layer_inputs=None) == 2
    assert model(None, None, SENT, per_layer_inputs=3) == 3
    assert model(None, None, Tensors(tensors={"hidden_states": 1})) is None
    assert model(None, None, None) is None


def test_the_first_stage_makes_its_own() -> None:
    outer, model = _models()
    take_layer_inputs(outer, 0)
    assert model(None, None, SENT) is None


def test_other_models_stay_as_they_are() -> None:
    layer = torch.nn.Linear(2, 2)
    before = type(layer).__call__
    take_layer_inputs(layer, 1)
    assert type(layer).__call__ is before
