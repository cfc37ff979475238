"""Whether the stages that answered a hello make up the model, and what the status then knows of them."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.logger import init_logger

from zmqpp import control
from zmqpp.errors import ConfigError
from zmqpp.layers import LayerRange, check_contiguous
from zmqpp.watch.board import Board
from zmqpp.watch.status import Layers

__all__ = ["check_fit", "check_ranks", "first_workers", "introduce"]

logger = init_logger("vllm.zmqpp.executor")


def check_fit(replies: Sequence[control.HelloReply]) -> None:
    """Raise ConfigError when the stages count different layers, or their ranges leave a gap or overlap."""
    total = replies[0].total_layers
    for reply in replies:
        if reply.total_layers != total:
            raise ConfigError(
                f"stage {reply.stage} counts {reply.total_layers} layers in its model, stage 0 {total}: "
                f"give every stage the same model and the same --hf-overrides"
            )
    check_contiguous({r.stage: LayerRange(r.start_layer, r.end_layer) for r in replies}, total)


def check_ranks(before: Sequence[int], replies: Sequence[control.HelloReply]) -> list[int]:
    """How many workers each stage has.

    Args:
        before: as it was when the pipeline was brought up; empty at that time.
    Raises:
        ConfigError: a stage came back with another number.
    """
    ranks = [reply.ranks for reply in replies]
    for stage, (was, now) in enumerate(zip(before, ranks, strict=False)):
        if was != now:
            raise ConfigError(
                f"stage {stage} came back with --tensor-parallel-size {now}, it had {was}: start it as it was"
            )
    return ranks


def first_workers(ranks: Sequence[int]) -> list[int]:
    """The place of each stage's first worker among those of all."""
    return [sum(ranks[:stage]) for stage in range(len(ranks))]


def introduce(board: Board, reply: control.HelloReply) -> None:
    """What the status knows of a stage before it runs."""
    stage = board.stage(reply.stage)
    stage.layers = Layers(reply.start_layer, reply.end_layer, reply.total_layers)
    stage.host, stage.pid = reply.host, reply.pid
    stage.bound, stage.connect = reply.bound, reply.connect
    stage.zmqpp_version, stage.vllm_version = reply.zmqpp_version, reply.vllm_version
    layers = LayerRange(reply.start_layer, reply.end_layer)
    logger.info(
        "stage %d: layers %s of %d on %s (pid %d), vLLM %s",
        *(reply.stage, layers, reply.total_layers, reply.host, reply.pid, reply.vllm_version),
    )
