"""Stage 0's settings reach the other stages; type and form of its own weights a stage may choose for itself."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from zmqpp.errors import ConfigError
from zmqpp.vllm import identity, settings


@dataclasses.dataclass
class Arguments:
    """The part of vLLM's EngineArgs that this is about."""

    dtype: str = "auto"
    quantization: str | None = None
    quantization_config: Any = None
    max_model_len: int | None = None
    logits_processors: list[str] | None = None
    watermark_config: dict[str, Any] | None = None
    model_impl: str = "auto"
    use_fp64_gumbel: bool = False
    lora_target_modules: list[str] | None = None
    skip_tokenizer_init: bool = False
    optimization_level: Any = 2
    speculative_config: dict[str, Any] | None = None
    reasoning_config: Any = None
    reasoning_parser: str = ""
    reasoning_parser_plugin: str = ""
    spec_method: str | None = None
    spec_model: str | None = None
    spec_tokens: int | None = None


STAGE_0: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 512}


def test_what_a_stage_does_not_say_it_takes_from_stage_0() -> None:
    adopted = settings.adopt(Arguments(), STAGE_0, 1)
    assert (adopted.dtype, adopted.quantization, adopted.max_model_len) == ("bfloat16", None, 512)
    assert settings.adopt(Arguments(), {**STAGE_0, "quantization": "fp8"}, 1).quantization == "fp8"


def test_a_stage_keeps_its_own_dtype_and_quantization() -> None:
    mine = Arguments(dtype="float32", quantization="awq")
    adopted = settings.adopt(mine, {**STAGE_0, "quantization": "fp8"}, 1)
    assert (adopted.dtype, adopted.quantization, adopted.max_model_len) == ("float32", "awq", 512)


@pytest.mark.vllm
def test_how_weights_are_quantised_at_load_is_said_to_stage_0_alone() -> None:
    from vllm.config.quantization import resolve_quantization_config

    def told(quantization: str | None, given: dict[str, Any] | None) -> dict[str, Any] | None:
        made = resolve_quantization_config(quantization, given)
        model = SimpleNamespace(quantization=quantization, quantization_config=made)
        said = settings._made_at_load(model)
        assert said is None or resolve_quantization_config(quantization, said) == made
        return said

    assert told(None, None) is None and told("fp8_per_tensor", None) is None
    said = told("online", {"linear": "fp8_per_channel", "ignore": ["lm_head"]})
    assert said == {"linear": {"weight": "fp8_per_channel_static"}, "ignore": ["lm_head"]}
    assert told("online", {"targets": {"*.mlp.*": "fp8_per_tensor"}}) is not None
    theirs = {"quantization": "online", "quantization_config": said}
    adopted = settings.adopt(Arguments(), theirs, 1)
    assert (adopted.quantization, adopted.quantization_config) == ("online", said)
    own = settings.adopt(Arguments(quantization="fp8"), theirs, 1)
    assert (own.quantization, own.quantization_config) == ("fp8", None)
    own = settings.adopt(Arguments(quantization_config={"linear": "fp8_per_tensor"}), theirs, 1)
    assert (own.quantization, own.quantization_config) == (None, {"linear": "fp8_per_tensor"})


def test_all_else_must_agree() -> None:
    with pytest.raises(
        ConfigError, match="stage 1 was started with --max-model-len 256, stage 0 runs with 512"
    ):
        settings.adopt(Arguments(max_model_len=256), STAGE_0, 1)


def test_what_vllm_made_something_else_of_agrees_when_the_flags_did() -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3}
    first = Arguments(max_model_len=-1, optimization_level="0", speculative_config=speculative)
    whole = {**speculative, "prompt_lookup_min": 3}
    made = {"max_model_len": 512, "optimization_level": 0, "speculative_config": whole}
    told = {**made, settings.ASKED: settings.asked(first)}
    adopted = settings.adopt(dataclasses.replace(first), told, 1)
    assert (adopted.max_model_len, adopted.speculative_config) == (512, whole)
    assert settings.adopt(Arguments(), told, 1).max_model_len == 512
    with pytest.raises(ConfigError, match="started with --max-model-len 256, stage 0 runs with 512"):
        settings.adopt(Arguments(max_model_len=256), told, 1)
    with pytest.raises(ConfigError, match="started with --max-model-len -1, stage 0 runs with 512"):
        settings.adopt(Arguments(max_model_len=-1), made, 1)


def test_adapters_apply_to_the_same_modules_everywhere() -> None:
    adopted = settings.adopt(Arguments(), {"lora_target_modules": ["q_proj"]}, 1)
    assert adopted.lora_target_modules == ["q_proj"]
    with pytest.raises(ConfigError, match="started with --lora-target-modules"):
        settings.adopt(Arguments(lora_target_modules=["v_proj"]), {"lora_target_modules": ["q_proj"]}, 1)


def test_code_is_not_taken_from_another_stage() -> None:
    same = Arguments(logits_processors=["a:B"])
    assert settings.adopt(same, {"logits_processors": ["a:B"]}, 1).logits_processors == ["a:B"]
    assert settings.adopt(Arguments(), {"logits_processors": []}, 1).logits_processors is None
    with pytest.raises(
        ConfigError, match="started with no --logits-processors, stage 0 with --logits-processors a:B"
    ):
        settings.adopt(Arguments(), {"logits_processors": ["a:B"]}, 1)
    with pytest.raises(ConfigError, match="a:B, stage 0 with no --logits-processors: give every stage"):
        settings.adopt(same, {"logits_processors": []}, 1)


def test_how_the_last_stage_samples_and_builds_comes_from_stage_0() -> None:
    adopted = settings.adopt(Arguments(), {"use_fp64_gumbel": True, "model_impl": "transformers"}, 1)
    assert (adopted.use_fp64_gumbel, adopted.model_impl) == (True, "transformers")
    with pytest.raises(ConfigError, match="started with --model-impl vllm, stage 0 runs with transformers"):
        settings.adopt(Arguments(model_impl="vllm"), {"model_impl": "transformers"}, 1)


@pytest.mark.vllm
def test_the_tokens_of_thinking_come_from_stage_0_whose_parser_is_not_asked_for_again() -> None:
    from vllm.config.reasoning import ReasoningConfig

    from zmqpp.vllm import reasoning

    config = ReasoningConfig(reasoning_start_str="<think>", reasoning_end_str="</think>")
    assert reasoning.words(config) is None, "it was not made ready"
    ids = {name: [number, 7] for number, name in enumerate(reasoning._IDS)}
    for name in reasoning._IDS:
        setattr(config, "_" + name, ids[name])
    config._enabled = True
    mine = Arguments(reasoning_parser="qwen3", reasoning_config={"reasoning_start_str": "<a>"})
    adopted = settings.adopt(mine, {"reasoning_config": reasoning.words(config)}, 1)
    assert adopted.reasoning_parser == "" and adopted.reasoning_config.reasoning_start_token_ids == [0, 7]
    assert settings.adopt(mine, {}, 1).reasoning_config is None


@pytest.mark.vllm
def test_a_watermark_is_given_to_every_stage_and_its_key_is_not_told() -> None:
    from vllm.config import WatermarkConfig

    key = {"key": 123456789}
    told = {"watermark_config": settings._watermark(WatermarkConfig(**key))}
    assert "123456789" not in str(told)
    assert settings.adopt(Arguments(watermark_config=key), told, 1).watermark_config == key
    with pytest.raises(
        ConfigError, match="started with no --watermark-config, stage 0 with --watermark-conf"
    ):
        settings.adopt(Arguments(), told, 1)
    with pytest.raises(ConfigError, match="context_width=9") as refused:
        settings.adopt(Arguments(watermark_config={**key, "context_width": 9}), told, 1)
    assert "123456789" not in str(refused.value)


def test_models_may_differ_in_their_quantisation_alone() -> None:
    plain = {"hidden_size": 8, "model_type": "llama"}
    packed = {**plain, "quantization_config": {"quant_method": "awq"}}
    identity.check_same_model(packed, plain, 1)
    identity.check_same_model(plain, packed, 1)
    assert identity.quantised_alike(packed, dict(packed)) and not identity.quantised_alike(packed, plain)
    with pytest.raises(ConfigError, match="hidden_size = 9 here, 8 on stage 0"):
        identity.check_same_model({**packed, "hidden_size": 9}, plain, 1)
