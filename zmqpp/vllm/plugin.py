"""vLLM's way in: the `vllm.general_plugins` entry point. Idempotent and cheap; vLLM calls it in every process.

Nothing changes for a vLLM that is started without our flags or our `additional_config`.
"""

from __future__ import annotations

import sys
from typing import Any

_MARK = "_zmqpp"
_plain_serve: Any = None
"""vLLM's own, once it is wrapped."""


def register() -> None:
    """Add the flags, the dispatch of `vllm serve`, and the pipeline options to vLLM's configuration."""
    from vllm.engine.arg_utils import EngineArgs

    if hasattr(EngineArgs.create_engine_config, _MARK):
        return
    _wrap_flags(EngineArgs)
    _wrap_config(EngineArgs)
    # Only the command line imports this module; every other process has no use for it.
    serve = sys.modules.get("vllm.entrypoints.cli.serve")
    if serve is not None:
        _wrap_serve(serve.ServeSubcommand)


def _wrap_flags(engine_args: Any) -> None:
    plain = engine_args.add_cli_args

    def add_cli_args(parser: Any) -> Any:
        from zmqpp.vllm.flags import add_flags

        parser = plain(parser)
        if sys.argv[1:2] == ["serve"]:  # other subcommands would take the flags and do nothing with them
            add_flags(parser)
        return parser

    engine_args.add_cli_args = staticmethod(add_cli_args)


def _wrap_serve(subcommand: Any) -> None:
    global _plain_serve
    _plain_serve = subcommand.cmd
    subcommand.cmd = staticmethod(serve)


def serve(args: Any) -> None:
    """`vllm serve`. By name in this module: vLLM keeps it in `args`, and pickles those for several API servers."""
    from zmqpp.vllm import serve as stages

    stages.serve(_plain_serve, args)


def _wrap_config(engine_args: Any) -> None:
    plain = engine_args.create_engine_config

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from zmqpp.vllm.options import CONFIG_KEY

        given = self.additional_config
        if not isinstance(given, dict) or CONFIG_KEY not in given:
            return plain(self, *args, **kwargs)
        from zmqpp.vllm.engine_config import external_config

        return external_config(self, lambda: plain(self, *args, **kwargs))

    setattr(create_engine_config, _MARK, True)
    engine_args.create_engine_config = create_engine_config
