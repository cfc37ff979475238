"""From pipeline options to a vLLM configuration: one stage's share of an N-stage pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zmqpp.errors import UnsupportedError
from zmqpp.vllm import compat
from zmqpp.vllm.drafts import check_method
from zmqpp.vllm.options import CONFIG_KEY, StageOptions
from zmqpp.vllm.runner_choice import check_runner, prefer_runner, runner_of
from zmqpp.vllm.settings import ASKED, asked
from zmqpp.vllm.start_checks import check_keys


def external_config(engine_args: Any, create: Callable[[], Any]) -> Any:
    """vLLM's configuration for one external stage.

    Args:
        engine_args: with `additional_config["zmqpp"]`; its pipeline size and executor are set here.
        create: vLLM's own `create_engine_config`.

    Raises:
        ConfigError, UnsupportedError: options or vLLM settings that do not go together.
    """
    from zmqpp.vllm.executor import ExternalStageExecutor

    options = StageOptions.from_config(engine_args.additional_config[CONFIG_KEY])
    check_keys(options)
    compat.check_vllm()
    compat.check_engine_flags(engine_args, "options")
    prefer_runner()
    engine_args.additional_config = {**engine_args.additional_config, ASKED: asked(engine_args)}
    engine_args.pipeline_parallel_size = options.total_stages
    # The class, not its name: vLLM's check for pipeline support reads the attribute.
    engine_args.distributed_executor_backend = ExternalStageExecutor
    config = create()
    check_runner(config, engine_args)
    check_method(config.speculative_config, runner_of(config))
    check_transfers(config)
    check_ranks(config, engine_args.tensor_parallel_size)
    # This process drives the devices of one stage; otherwise vLLM expects N x TP of them here.
    config.parallel_config.world_size = engine_args.tensor_parallel_size
    return config


def check_transfers(config: Any) -> None:
    """Refuse what would move caches, weights or what layers say past the ring of stages.

    Raises:
        UnsupportedError: what, and what to do.
    """
    if config.kv_transfer_config is not None or config.ec_transfer_config is not None:
        raise UnsupportedError(
            "KV and encoder cache connectors are not supported with external stages yet: leave them out"
        )
    if config.weight_transfer_config is not None:
        raise UnsupportedError(
            "--weight-transfer-config is not supported with external stages: leave it out, and start the pipeline "
            "anew for other weights"
        )
    outputs = getattr(config, "aux_output_config", None)
    if outputs is not None and outputs.enabled:
        raise UnsupportedError(
            "--enable-return-routed-experts is not supported with external stages: each knows its own layers' experts "
            "alone; leave it out"
        )


def check_ranks(config: Any, ranks: int) -> None:
    """Refuse what a stage of several tensor-parallel ranks does not do.

    Raises:
        UnsupportedError: what, and what to do.
    """
    if ranks == 1:
        return
    cache = getattr(config.model_config.multimodal_config, "mm_processor_cache_type", None)
    if cache == "shm":
        raise UnsupportedError(
            "--mm-processor-cache-type shm is not supported on a stage of several ranks: leave it out"
        )
    if getattr(config.compilation_config.pass_config, "enable_sp", False):
        raise UnsupportedError(
            "sequence parallelism (enable_sp) is not supported on a stage of several ranks: leave it out"
        )
