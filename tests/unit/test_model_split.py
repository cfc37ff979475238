"""What a model of the transformers backend does in front of its layers: with several stages, each would do it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.vllm.model_split import _done_in_front_of_layers

pytestmark = pytest.mark.vllm

MODELS = {
    "nanochat.NanoChatModel": ["hidden_states = self.norm(hidden_states)"],
    "llama.LlamaModel": [],
    "qwen2.Qwen2Model": [],
    "phi.PhiModel": [],  # dropout alone
    "gpt_neox.GPTNeoXModel": [],
    "granite.GraniteModel": [],  # its scale is judged by the value
    "bloom.BloomModel": ["hidden_states = self.word_embeddings_layernorm(inputs_embeds)"],
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_own_models(name: str) -> None:
    folder, _, model = name.partition(".")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    assert _done_in_front_of_layers(getattr(module, model)) == MODELS[name]


class Adds:
    def forward(self, input_ids: Any, inputs_embeds: Any, positions: Any) -> Any:
        hidden_states = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # type: ignore[attr-defined]
        hidden_states += positions
        for layer in self.layers:  # type: ignore[attr-defined]
            hidden_states = layer(hidden_states)
        return hidden_states


class HasNoLoop:
    def forward(self, hidden_states: Any) -> Any:
        hidden_states = hidden_states * 2
        return hidden_states


def test_what_is_added_in_place_counts_and_embedding_ids_does_not() -> None:
    assert _done_in_front_of_layers(Adds) == ["hidden_states += positions"]


def test_code_without_layers_or_without_a_source_is_not_judged() -> None:
    assert _done_in_front_of_layers(HasNoLoop) == []
    assert _done_in_front_of_layers(type("Made", (), {"forward": len})) == []
    assert _done_in_front_of_layers(object) == []
