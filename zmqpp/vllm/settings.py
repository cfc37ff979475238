"""Engine settings that all stages must share: stage 0 resolves them, the hello carries them, stages adopt them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from zmqpp.errors import ConfigError
from zmqpp.vllm import reasoning
from zmqpp.vllm.drafts import speculation

_GETTERS: dict[str, Callable[[Any], Any]] = {
    # EngineArgs field -> where stage 0's finished VllmConfig holds it
    "dtype": lambda c: str(c.model_config.dtype).removeprefix("torch."),
    "seed": lambda c: c.model_config.seed,
    "max_model_len": lambda c: c.model_config.max_model_len,
    "quantization": lambda c: c.model_config.quantization,
    "quantization_config": lambda c: _made_at_load(c.model_config),
    "enforce_eager": lambda c: c.model_config.enforce_eager,
    "max_logprobs": lambda c: c.model_config.max_logprobs,
    "logprobs_mode": lambda c: c.model_config.logprobs_mode,
    "hf_overrides": lambda c: (
        c.model_config.hf_overrides if isinstance(c.model_config.hf_overrides, dict) else None
    ),
    "disable_sliding_window": lambda c: c.model_config.disable_sliding_window,
    "model_impl": lambda c: c.model_config.model_impl,
    "use_fp64_gumbel": lambda c: c.model_config.use_fp64_gumbel,
    "return_sampling_mask": lambda c: c.model_config.return_sampling_mask,
    "enable_trace_replay": lambda c: getattr(c.model_config, "enable_trace_replay", None),
    "language_model_only": lambda c: getattr(c.model_config.multimodal_config, "language_model_only", None),
    "watermark_config": lambda c: _watermark(c.watermark_config),
    reasoning.NAME: lambda c: reasoning.words(c.reasoning_config),
    "runner": lambda c: c.model_config.runner,
    "convert": lambda c: c.model_config.convert,
    "enable_prompt_embeds": lambda c: c.model_config.enable_prompt_embeds,
    "max_num_batched_tokens": lambda c: c.scheduler_config.max_num_batched_tokens,
    "max_num_seqs": lambda c: c.scheduler_config.max_num_seqs,
    "enable_chunked_prefill": lambda c: c.scheduler_config.enable_chunked_prefill,
    "async_scheduling": lambda c: c.scheduler_config.async_scheduling,
    "block_size": lambda c: c.cache_config.block_size,
    "kv_cache_dtype": lambda c: c.cache_config.cache_dtype,
    "kv_cache_dtype_skip_layers": lambda c: c.cache_config.kv_cache_dtype_skip_layers or None,
    "kv_sharing_fast_prefill": lambda c: c.cache_config.kv_sharing_fast_prefill,
    "kv_cache_memory_bytes": lambda c: c.cache_config.kv_cache_memory_bytes,
    "num_gpu_blocks_override": lambda c: c.cache_config.num_gpu_blocks_override,
    "enable_prefix_caching": lambda c: c.cache_config.enable_prefix_caching,
    "optimization_level": lambda c: int(c.optimization_level),
    "speculative_config": lambda c: speculation(c.speculative_config),
    "pooler_config": lambda c: _pooler(c.model_config.pooler_config) or None,
    "logits_processors": lambda c: _names(c.model_config.logits_processors),
    "enable_lora": lambda c: c.lora_config is not None,
    "max_loras": lambda c: _lora(c, "max_loras"),
    "max_lora_rank": lambda c: _lora(c, "max_lora_rank"),
    "max_cpu_loras": lambda c: _lora(c, "max_cpu_loras"),
    "lora_dtype": lambda c: _lora_dtype(c),
    "lora_target_modules": lambda c: _lora(c, "target_modules"),
    "fully_sharded_loras": lambda c: _lora(c, "fully_sharded_loras"),
    "enable_tower_connector_lora": lambda c: _lora(c, "enable_tower_connector_lora"),
    "enable_mixed_moe_lora_format": lambda c: _lora(c, "enable_mixed_moe_lora_format"),
    "enable_moe_shared_loras": lambda c: _lora(c, "enable_moe_shared_loras"),
    "max_lora_cls_labels": lambda c: _lora(c, "max_lora_cls_labels"),
}


def _lora(config: Any, field: str) -> Any:
    """None also where this vLLM does not know it yet."""
    return getattr(config.lora_config, field, None) if config.lora_config is not None else None


def _lora_dtype(config: Any) -> str | None:
    """None where it is the model's: a stage may have a dtype of its own, which its adapters then have too."""
    dtype = _lora(config, "lora_dtype")
    own = dtype is None or dtype == config.model_config.dtype
    return None if own else str(dtype).removeprefix("torch.")


def _pooler(config: Any) -> dict[str, Any]:
    """What is set; vLLM takes `pooling_type` only for the two that it stands for."""
    if config is None:
        return {}
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in given.items() if value is not None and name != "pooling_type"}


def _changed(config: Any) -> dict[str, Any]:
    """What a stage was told of the pooler, beside vLLM's defaults."""
    defaults = _pooler(type(config)()) if config is not None else {}
    return {name: value for name, value in _pooler(config).items() if value != defaults.get(name)}


def _made_at_load(model_config: Any) -> dict[str, Any] | None:
    """`--quantization-config` in words, where it says more than `--quantization` alone."""
    from vllm.config.quantization import QUANT_KEY_NAMES, resolve_quantization_config

    given = model_config.quantization_config
    if given is None or given == resolve_quantization_config(model_config.quantization, None):
        return None
    words = {key: name for name, key in QUANT_KEY_NAMES.items()}
    said: dict[str, Any] = {"ignore": list(given.ignore), "targets": given.targets}
    for kind in ("linear", "moe"):
        spec = getattr(given, kind)
        said[kind] = spec and {name: words[getattr(spec, name)] for name in _SIDES if getattr(spec, name)}
    return {name: value for name, value in said.items() if value}


def _names(kinds: Any) -> list[str]:
    return [
        kind if isinstance(kind, str) else f"{kind.__module__}:{kind.__qualname__}" for kind in kinds or ()
    ]


def _watermark(config: Any) -> list[str]:
    """In words, which leave the key out; `config` as vLLM made it, or as it is given to a stage."""
    from vllm.config import WatermarkConfig

    return [repr(WatermarkConfig(**config) if isinstance(config, dict) else config)] if config else []


def shared_settings(vllm_config: Any) -> dict[str, Any]:
    """Stage 0's resolved settings, by EngineArgs field, and under `ASKED` what its flags said; plain values only."""
    values = {field: get(vllm_config) for field, get in _GETTERS.items()}
    values[ASKED] = (vllm_config.additional_config or {}).get(ASKED)
    return {field: _plain(value) for field, value in values.items() if value is not None}


def asked(engine_args: Any) -> dict[str, Any]:
    """For `ASKED`: what flags said before vLLM made something else of it, such as a length of -1."""
    fields = {field.name: _default_of(field) for field in dataclasses.fields(engine_args)}
    names = fields.keys() & _GETTERS.keys() - {*_OWN, *_GIVEN, reasoning.NAME, "pooler_config"}
    given = {name: getattr(engine_args, name) for name in sorted(names)}
    said = {name: value for name, value in given.items() if value is not None and value != fields[name]}
    return copy.deepcopy({name: _plain(value) for name, value in said.items()})


def _plain(value: Any) -> Any:
    plain = isinstance(value, bool | int | float | str | dict | list)
    return value if plain else getattr(value, "value", str(value))


ASKED = "zmqpp_asked"
QUANTISING = ("quantization", "quantization_config")
"""They belong together: with one of its own, a stage takes neither from stage 0."""
_SIDES = ("weight", "activation")
_OWN = ("dtype", *QUANTISING)
"""What a stage may choose for itself, by a flag of its own; vLLM casts the activations that it receives."""
_SHORTHANDS = ("spec_method", "spec_model", "spec_tokens")
"""Of `speculative_config`, which comes whole."""
_GIVEN: dict[str, Callable[[Any], list[str]]] = {"logits_processors": _names, "watermark_config": _watermark}
"""What every stage is given itself, and the same: names of code, which no stage imports at another's word, and a key,
which is not for the wire. Here in the words in which they are compared."""


def adopt(engine_args: Any, settings: dict[str, Any], stage: int) -> Any:
    """A copy of a worker stage's `engine_args` with stage 0's settings in place, but for those of `_OWN` given here.

    Raises:
        ConfigError: the stage was launched with a flag that contradicts stage 0, or stage 0
            sent a setting this stage's vLLM does not have.
    """
    fields, own = {field.name: field for field in dataclasses.fields(engine_args)}, set()
    settings = dict(settings)
    flags, thinking = settings.pop(ASKED, {}), settings.pop(reasoning.NAME, None)
    for name, theirs in settings.items():
        if name not in fields or name not in _GETTERS:
            raise ConfigError(
                f"stage 0 sent the setting {name!r}, which stage {stage} does not know; use one zmqpp version"
            )
        mine, default = getattr(engine_args, name), _default_of(fields[name])
        if name in _GIVEN:
            _check_given(name, _GIVEN[name](mine), theirs, stage)
            own.add(name)
        elif name == "pooler_config":
            _check_agrees(name, {**theirs, **_changed(mine)}, theirs, theirs, stage)
        elif name not in _OWN:
            if name not in flags or not _same(name, mine, flags[name]):
                _check_agrees(name, mine, default, theirs, stage)
        elif mine is not None and not _same(name, mine, default):
            own.add(name)
    own.update(QUANTISING if own & {*QUANTISING} else ())
    known = {name: value for name, value in settings.items() if name not in own}
    if "optimization_level" in known:
        known["optimization_level"] = type(engine_args.optimization_level)(known["optimization_level"])
    if "pooler_config" in known:
        from vllm.config import PoolerConfig

        known["pooler_config"] = PoolerConfig(**known["pooler_config"])
    known |= dict.fromkeys(_SHORTHANDS) | reasoning.given(thinking)
    return dataclasses.replace(engine_args, **known, skip_tokenizer_init=True)


def own_forms(config: Any, settings: dict[str, Any]) -> list[str]:
    """In which words of `_OWN` this stage's finished configuration differs from stage 0's `settings`."""
    mine = {name: _GETTERS[name](config) for name in _OWN}
    told = {name: settings.get(name) for name in _OWN}
    return [
        f"{name} is {mine[name] or 'none'}, on stage 0 {told[name] or 'none'}"
        for name in _OWN
        if _plain(mine[name] or "") != _plain(told[name] or "")
    ]


def _check_agrees(name: str, mine: Any, default: Any, theirs: Any, stage: int) -> None:
    if mine is None or _same(name, mine, default) or _same(name, mine, theirs):
        return
    flag = "--" + name.replace("_", "-")
    raise ConfigError(
        f"stage {stage} was started with {flag} {_plain(mine)}, stage 0 runs with {theirs}: "
        f"leave {flag} out on stage {stage} (stage 0 decides), or give both the same"
    )


def _check_given(name: str, mine: list[str], theirs: list[str], stage: int) -> None:
    if mine == theirs:
        return
    flag = "--" + name.replace("_", "-")
    raise ConfigError(
        f"stage {stage} was started with {_words(flag, mine)}, stage 0 with {_words(flag, theirs)}: "
        f"give every stage the same (code and keys are not taken from another stage)"
    )


def _words(flag: str, names: list[str]) -> str:
    return f"{flag} {' '.join(names)}" if names else f"no {flag}"


def _same(name: str, a: Any, b: Any) -> bool:
    if name == "dtype":
        aliases = {"half": "float16", "float": "float32"}
        a, b = (str(x).removeprefix("torch.") for x in (a, b))
        return aliases.get(a, a) == aliases.get(b, b)
    return bool(_plain(a) == _plain(b)) if a is not None and b is not None else a is b


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
