"""Whether a stage can serve the stage 0 that greets it: the first one, one that goes on, or another one."""

from __future__ import annotations

import os
import socket

import msgspec

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import ConfigError, MalformedError, UnsupportedError, ZmqppError
from zmqpp.layers import LayerRange
from zmqpp.version import __version__
from zmqpp.vllm import compat
from zmqpp.vllm.options import StageOptions
from zmqpp.vllm.wire_digest import wire_digest

__all__ = ["StartOver", "check_places", "check_unchanged", "check_versions", "introduction"]


class StartOver(ZmqppError):
    """What this stage has loaded is of no use any more: its process begins anew."""


def check_versions(hello: control.Hello, options: StageOptions) -> None:
    """Raise UnsupportedError or ConfigError when stage 0 runs other software, or counts other stages."""
    index = options.stage_idx
    if hello.protocol != control.PROTOCOL_VERSION:
        raise UnsupportedError(
            f"stage {index} speaks stage protocol {control.PROTOCOL_VERSION} (zmqpp {__version__}), "
            f"stage 0 speaks {hello.protocol} (zmqpp {hello.zmqpp_version}): install one zmqpp version everywhere"
        )
    if hello.total_stages != options.total_stages:
        raise ConfigError(
            f"stage {index} was started with --pipeline-total-stages {options.total_stages}, "
            f"stage 0 with {hello.total_stages}: give every stage the same number"
        )
    mine = compat.vllm_version()
    if compat.minor(mine) != compat.minor(hello.vllm_version):
        raise UnsupportedError(
            f"stage {index} runs vLLM {mine}, stage 0 runs {hello.vllm_version}: install the same on both"
        )
    if mine != hello.vllm_version and wire_digest() != hello.objects:
        raise UnsupportedError(
            f"stage {index} runs vLLM {mine}, stage 0 runs {hello.vllm_version}, whose steps look different: "
            f"install the same on both"
        )


def check_unchanged(before: control.Hello | None, hello: control.Hello, index: int) -> None:
    """Another stage 0 may have come: what is loaded here serves it only if it asks for the same.

    Raises:
        StartOver: it does not.
    """
    if before is None or _lasting(before) != _lasting(hello):
        raise StartOver(f"stage {index}: stage 0 came back with another model or other settings")


def check_places(first: object, options: StageOptions) -> None:
    """Raise MalformedError where `first` does not tell how many workers come before those of each stage."""
    if type(first) is not list or len(first) != options.total_stages or set(map(type, first)) != {int}:
        raise MalformedError(f"stage 0 asks to load, and says of the stages' workers {shown(first)}")


def introduction(
    options: StageOptions, bound: str, layers: LayerRange, total_layers: int
) -> control.HelloReply:
    """What this stage says of itself, to be told whether it is ready, and for which epoch."""
    return control.HelloReply(
        stage=options.stage_idx,
        total_layers=total_layers,
        start_layer=layers.start,
        end_layer=layers.end,
        zmqpp_version=__version__,
        vllm_version=compat.vllm_version(),
        host=socket.gethostname(),
        pid=os.getpid(),
        bound=bound,
        connect=str(options.connect),
    )


def _lasting(hello: control.Hello) -> control.Hello:
    return msgspec.structs.replace(hello, session="", epoch=0)
