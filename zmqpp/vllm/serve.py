"""`vllm serve` with our flags: plain vLLM, stage 0 with its HTTP server, or a worker stage."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from zmqpp.checkpoint.pipelining import check_pipelined
from zmqpp.errors import ConfigError, ZmqppError
from zmqpp.pipeline.events import EVENTS_VARIABLE, emit
from zmqpp.vllm import compat, failure, identity
from zmqpp.vllm.options import CONFIG_KEY, StageOptions, read_flags
from zmqpp.vllm.start_checks import check_addresses
from zmqpp.vllm.timeouts import recovery_s, startup_s, step_s

MIDDLEWARE = "zmqpp.vllm.http.PipelineRoutes"
_STOP_S = 5.0
"""For the engine to tell the stages that the pipeline ends."""

Command = Callable[[argparse.Namespace], None]


def serve(plain: Command, args: argparse.Namespace) -> None:
    """What `vllm serve` runs; `plain` is vLLM's own `ServeSubcommand.cmd`."""
    try:
        options = read_flags(args, warn)
    except ZmqppError as error:
        end(error)
    if options is None:
        plain(args)
        return
    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag
    try:
        check_start(args, options)
    except ZmqppError as error:
        end_early(options, error)
    if options.is_first:
        run_first(plain, args, options)
    else:
        run_other(args, options)


def check_start(args: argparse.Namespace, options: StageOptions) -> None:
    """All that can be known to be wrong before anything is loaded.

    Raises:
        ZmqppError: one line, what to change.
    """
    compat.check_vllm()
    compat.check_engine_flags(args, "flags")
    startup_s(), step_s(), recovery_s()
    if CONFIG_KEY in (args.additional_config or {}):
        raise ConfigError(
            f"--additional-config has a {CONFIG_KEY!r} of its own beside the --pipeline flags: leave it out"
        )
    config = identity.read_config(args.model)
    if config and args.model_impl in ("auto", "vllm") and not args.hf_overrides:
        check_pipelined(config, args.model)
    identity.choose_range(options, config, identity.layer_count(config) if config else None)
    check_addresses(options, compat.api_endpoint(args) if options.is_first else None)


def run_other(args: argparse.Namespace, options: StageOptions) -> None:
    """Stages 1..N-1."""
    from zmqpp.vllm.worker_stage import read_engine_args, run_worker_stage

    emit(options.stage_idx, "starting")
    try:
        engine_args = read_engine_args(args)
    except (ValueError, NotImplementedError, OSError) as error:
        end_early(options, refusal(error, options))
    try:
        run_worker_stage(engine_args, options)
    except ZmqppError as error:
        end(error)


def run_first(plain: Command, args: argparse.Namespace, options: StageOptions) -> None:
    """vLLM's own server, with our executor; ends with the pipeline's reason when that ended it."""
    emit(0, "starting")
    args.additional_config = {**(args.additional_config or {}), **options.additional_config()}
    args.middleware = [*(args.middleware or ()), MIDDLEWARE]
    failure.open_file()
    compat.name_failure_to_clients(failure.read)
    if os.environ.get(EVENTS_VARIABLE):  # a launcher replaces this server
        compat.give_engine_time_to_stop(_STOP_S, failure.EngineWatch().stopping)
    else:
        compat.give_engine_time_to_stop(_STOP_S)
    unheard = ""
    try:
        plain(args)
        reason = failure.read()
    except (Exception, SystemExit) as error:
        reason = failure.read()
        unheard = "" if reason else refusal(error, options)
        if not reason and not unheard:
            raise
    finally:
        failure.remove_files()
    if unheard:
        end_early(options, unheard)
    if reason:
        named = re.match(r"stage (\d+)\b", reason)
        emit(int(named[1]) if named else 0, "failed", reason=reason)
        end(reason)


def refusal(error: BaseException, options: StageOptions) -> str:
    """A mistake in the configuration, as vLLM words it; empty for anything else, which keeps its traceback."""
    from zmqpp.vllm.wording import describe

    if isinstance(error, ZmqppError):
        return str(error)
    if isinstance(error, ValueError | NotImplementedError | OSError):
        return f"stage {options.stage_idx}: vLLM refuses this configuration: {describe(error)}"
    return ""


def end_early(options: StageOptions, error: object) -> NoReturn:
    """End before this stage is on the ring: say why here, then to the next stage, if it is there."""
    from zmqpp.vllm.place import tell_next

    failure.say(error)
    emit(options.stage_idx, "failed", reason=str(error))
    tell_next(options, str(error))
    leave(error)


def warn(line: str) -> None:
    """A line for people that ends nothing."""
    compat.write_line(sys.stderr, f"zmqpp: warning: {line}")


def end(error: object) -> NoReturn:
    """One line and a non-zero exit."""
    failure.say(error)
    leave(error)


def leave(error: object) -> NoReturn:
    """A non-zero exit; 2 for a mistake in what was asked for."""
    sys.stdout.flush()
    raise SystemExit(2 if isinstance(error, ValueError) else 1)
