"""What a stage runs: the model's config.json, its layers, and which of them are this stage's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zmqpp.checkpoint.companions import MODULES, sentence_modules
from zmqpp.checkpoint.config import (
    CHECKSUMS,
    PIPELINE_INFO,
    exported_stage,
    layer_count,
    read_config,
    source_fingerprint,
)
from zmqpp.checkpoint.fingerprint import digest_header, sample
from zmqpp.errors import ConfigError, LayerRangeError
from zmqpp.layers import LayerRange
from zmqpp.vllm.options import StageOptions

__all__ = [
    "PIPELINE_INFO",
    "check_same_model",
    "check_same_modules",
    "check_same_weights",
    "choose_range",
    "comparable",
    "exported_range",
    "layer_count",
    "model_identity",
    "own_range",
    "quantised_alike",
    "read_config",
    "read_hub_config",
    "sample_weights",
]

_VOLATILE = frozenset(
    {PIPELINE_INFO, "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)

_QUANTISED = "quantization_config"
"""May differ: a stage may hold the same layers in fewer bits."""


def quantised_alike(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two config.json describe weights of the same form."""
    return bool(mine.get(_QUANTISED) == theirs.get(_QUANTISED))


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What must be equal on every stage, as it looks after a trip through msgpack."""
    return json.loads(json.dumps({k: v for k, v in config.items() if k not in _VOLATILE}))  # type: ignore[no-any-return]


def check_same_model(mine: dict[str, Any], theirs: dict[str, Any], stage: int) -> None:
    """Raise ConfigError naming the first field in which stage `stage` differs from stage 0."""
    for key in sorted((mine.keys() | theirs.keys()) - {_QUANTISED}):
        here, there = mine.get(key), theirs.get(key)
        if here != there:
            raise ConfigError(
                f"stage {stage} runs a different model than stage 0: config.json has {key} = {here!r} here, "
                f"{there!r} on stage 0; give every stage the same model"
            )


def sample_weights(model: str) -> dict[str, tuple[str, str]]:
    """Safetensors file of a directory -> (digest of its header, digest of samples); a few dozen KB are read each.

    An exported stage adds what it was exported from; a model for sentences, what vectors go through behind it.
    """
    found = {
        path.name: (digest_header(path), sample(path)) for path in sorted(Path(model).glob("*.safetensors"))
    }
    beside = {CHECKSUMS: source_fingerprint(Path(model)), MODULES: _digest_modules(Path(model))}
    return found | {name: (digest, "") for name, digest in beside.items() if digest}


def _digest_modules(folder: Path) -> str:
    """Of what sentence-transformers has beside the model; empty where it has nothing."""
    found = sentence_modules(folder)
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(found):
        digest.update(f"{name} {sample(found[name])}\n".encode())
    return digest.hexdigest() if found else ""


def check_same_modules(model: str, theirs: dict[str, tuple[str, str]], stage: int) -> None:
    """Raise ConfigError where vectors would be pooled otherwise, or go through other layers, than stage 0's model says.

    Of a hub id nothing is known here, nor of a stage 0 that has none but the tensors of another format.
    """
    if not Path(model).is_dir() or not theirs:
        return
    here, there = _digest_modules(Path(model)), theirs.get(MODULES, ("", ""))[0]
    if here != there:
        what = "differ" if here and there else f"are {'only here' if here else 'not here'}"
        raise ConfigError(
            f"stage {stage}: {MODULES} and the folders that it names, which say how vectors are pooled, {what}: "
            f"{model} must have the same of them as stage 0's directory; copy them, or export the model again"
        )


def check_same_weights(model: str, theirs: dict[str, tuple[str, str]], stage: int) -> None:
    """Raise ConfigError when a file with the same tensors as stage 0's holds other values.

    Files of other names, or with other tensors, say nothing: a stage may have its own share of the model, whose
    files can have the very sizes of stage 0's, or other shards.
    """
    mine, stage_0s = source_fingerprint(Path(model)), theirs.get(CHECKSUMS, ("", ""))[0]
    if mine and stage_0s and mine != stage_0s:
        raise ConfigError(
            f"stage {stage}: {model} was exported from a different model than stage 0's, or from another version of "
            f"it; export all stages again, together, and copy them anew"
        )
    for path in sorted(Path(model).glob("*.safetensors")):
        there = theirs.get(path.name)
        if there is not None and there[0] == digest_header(path) and there[1] != sample(path):
            raise ConfigError(
                f"stage {stage} runs a different model than stage 0: its {path.name} has the same tensors but "
                f"other contents; give every stage the same model"
            )


def exported_range(config: dict[str, Any], options: StageOptions) -> LayerRange | None:
    """The range that `_pipeline_info` gives this stage directory, checked against the flags.

    Raises:
        ConfigError: malformed, or exported for another stage or another number of stages.
    """
    exported = exported_stage(config)
    if exported is None:
        return None
    said = {"stage_idx": exported.stage, "total_stages": exported.stages}
    for key, flag in (("stage_idx", "--pipeline-stage-idx"), ("total_stages", "--pipeline-total-stages")):
        mine = getattr(options, key)
        if said[key] != mine:
            raise ConfigError(f"this directory was exported with {key} {said[key]}, but {flag} says {mine}")
    return exported.layers


def choose_range(
    options: StageOptions, config: dict[str, Any] | None, total_layers: int | None
) -> LayerRange | None:
    """This stage's layers by flag or by `_pipeline_info`; None leaves it to vLLM's split.

    Raises:
        LayerRangeError, ConfigError: out of the model, or flag and directory disagree.
    """
    by_flag = LayerRange.parse(options.layer_range) if options.layer_range else None
    exported = exported_range(config, options) if config is not None else None
    if by_flag and exported and by_flag != exported:
        raise LayerRangeError(
            f"--pipeline-layer-range {by_flag} contradicts this directory, which was exported with layers {exported}"
        )
    chosen = by_flag or exported
    if chosen and total_layers is not None:
        chosen.check_within(total_layers, options.stage_idx)
    return chosen


def model_identity(model_config: Any) -> dict[str, Any]:
    """What stage 0 compares the other stages' models with.

    Raises:
        ConfigError: no config.json to compare.
    """
    config = read_config(model_config.model)
    if config is None:
        config = read_hub_config(model_config)
    return comparable(config)


def read_hub_config(model_config: Any) -> dict[str, Any]:
    """config.json of a hub id, from the cache that vLLM has just filled."""
    from transformers import PretrainedConfig

    found = PretrainedConfig.get_config_dict(model_config.model, revision=model_config.revision)
    return dict(found[0])


def own_range(options: StageOptions, model_config: Any) -> LayerRange:
    """This stage's layers once vLLM knows the model: by flag, by `_pipeline_info`, else by vLLM's split."""
    from vllm.distributed.utils import get_pp_indices

    total = model_config.get_total_num_hidden_layers()
    chosen = choose_range(options, read_config(model_config.model), total)
    if chosen is not None:
        return chosen
    if total < options.total_stages:
        raise LayerRangeError(
            f"{options.total_stages} stages cannot share {total} layers: every stage needs at least one; "
            f"use at most {total} stages"
        )
    return LayerRange(*get_pp_indices(total, options.stage_idx, options.total_stages))
