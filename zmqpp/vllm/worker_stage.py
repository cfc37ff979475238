"""Stages 1..N-1: `vllm serve … --external-pp-worker` ends up here instead of in an HTTP server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange
from zmqpp.transport import Link, Relay
from zmqpp.vllm import identity
from zmqpp.vllm.greeting import StartOver
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.ranks import RankKilled, Ranks, end_with_rank
from zmqpp.vllm.runner_choice import adopt_runner, forget_adopted
from zmqpp.vllm.settings import QUANTISING, adopt, own_forms
from zmqpp.vllm.stage import Stage
from zmqpp.vllm.warm import warm_up
from zmqpp.vllm.warning_lines import show_warnings
from zmqpp.vllm.wording import describe

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def read_engine_args(args: argparse.Namespace) -> Any:
    """vLLM's settings of this stage, as its flags give them. Raises whatever vLLM raises."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs.from_cli_args(args)


def run_worker_stage(engine_args: Any, options: StageOptions) -> None:
    """Serve as one stage until the engine stops the pipeline.

    Raises:
        ZmqppError: this stage, or another one, cannot go on.
    """
    from vllm.logger import init_logger
    from vllm.utils.system_utils import set_process_title

    index = options.stage_idx
    set_process_title(f"zmqpp_stage_{index}")
    log = init_logger("vllm.zmqpp.stage").info
    show_warnings(index)
    link = Link(
        bind=str(options.bind),
        connect=str(options.connect),
        name=f"stage {index}",
        previous=f"stage {index - 1}",
        expect=f"stage {index - 1}",
        next="the engine" if options.is_last else f"stage {index + 1}",
        relay=Relay.RETURN if options.is_last else Relay.FORWARD,
        config=options.transport_config(),
    )
    signal.signal(signal.SIGTERM, _leave)
    log(f"stage {index}: bound to {link.bound}, waiting for stage {index - 1} at {link.connect}")

    def configure(hello: control.Hello) -> tuple[VllmConfig, LayerRange]:
        config, layers = _configure(engine_args, options, hello)
        for difference in own_forms(config, hello.settings):
            log(f"stage {index}: {difference}: what arrives is cast")
        return config, layers

    stage: Stage | None = None
    try:
        with Ranks(index, engine_args.tensor_parallel_size, engine_args.model) as ranks:
            warm_up(engine_args.model)
            stage = Stage(options, link, configure, ranks, log)
            stage.run()
    except StartOver as error:
        log(f"{error}; starting over")
        sys.stdout.flush()
        sys.stderr.flush()
        forget_adopted()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except RankKilled as error:
        if stage is None or not stage.place.in_use:
            raise
        end_with_rank(error, in_use=True)
    log(f"stage {index}: stopped by stage 0")


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _configure(
    engine_args: Any, options: StageOptions, hello: control.Hello
) -> tuple[VllmConfig, LayerRange]:
    """This stage's vLLM configuration under stage 0's settings, once both are known to run the same model."""
    mine = identity.read_config(engine_args.model)
    settings = dict(hello.settings)
    alike = mine is None or identity.quantised_alike(identity.comparable(mine), hello.model)
    if mine is not None:
        identity.check_same_model(identity.comparable(mine), hello.model, options.stage_idx)
    if alike:
        identity.check_same_weights(engine_args.model, hello.weights, options.stage_idx)
    else:
        # This stage's own config.json says how its weights are to be read.
        for name in QUANTISING:
            settings.pop(name, None)
    identity.check_same_modules(engine_args.model, hello.weights, options.stage_idx)
    adopt_runner(hello.runner, options.stage_idx)
    adopted = adopt(engine_args, settings, options.stage_idx)
    adopted.additional_config = {**(adopted.additional_config or {}), **options.additional_config()}
    try:
        config = adopted.create_engine_config()
    except (ValueError, NotImplementedError, OSError) as error:
        raise ConfigError(
            f"stage {options.stage_idx}: vLLM refuses this configuration: {describe(error)}"
        ) from None
    # What a model makes of images needs its processor, and that its tokenizer, where vLLM plans memory for them.
    config.model_config.skip_tokenizer_init = not config.model_config.is_multimodal_model
    if mine is None:
        theirs = identity.comparable(identity.read_hub_config(config.model_config))
        identity.check_same_model(theirs, hello.model, options.stage_idx)
    return config, identity.own_range(options, config.model_config)
