"""What a stage's own process, its tensor-parallel rank 0, says to the others: a pipe each, no socket.

    exec, sample, rpc    as they came over the ring (see control.py), once rank 0 has found them good
    tensors              the activations have come; the tensors follow as a broadcast in vLLM's tensor-parallel group
    abandon              they will not: this step is given up
    stop                 leave

An rpc is answered with an `RpcReply`, whose stage is the rank. Before all that comes one `Assignment`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from zmqpp import control
from zmqpp.layers import LayerRange

__all__ = ["Abandon", "AnyWord", "Assignment", "RankPlace", "Tensors", "decode", "encode"]


@dataclass(frozen=True)
class RankPlace:
    """One worker's place among those of its stage, and of the pipeline."""

    rank: int = 0
    size: int = 1
    first: int = 0
    """Workers of the stages before this one: `first + rank` is its place among all."""
    init_method: str = ""
    """Where the workers of this stage meet."""


@dataclass(frozen=True)
class Assignment:
    """All that another rank needs to load its share; pickled, as to any child process."""

    config: Any
    """vLLM's VllmConfig."""
    layers: LayerRange
    place: RankPlace
    environment: dict[str, str]
    """As the stage's own process has it now: vLLM sets variables while it makes the configuration."""


class Tensors(control.Message, tag="tensors"):
    """Name, dtype and shape of each, in the order of their broadcasts."""

    step: int
    like: list[tuple[str, str, list[int]]]


class Abandon(control.Message, tag="abandon"):
    """Whoever waits for the activations of this step waits no more."""

    step: int


AnyWord = control.Exec | control.Sample | control.Rpc | control.Stop | Tensors | Abandon
_decoder: msgspec.msgpack.Decoder[AnyWord] = msgspec.msgpack.Decoder(AnyWord)
_encoder = msgspec.msgpack.Encoder()


def encode(word: AnyWord) -> bytes:
    return _encoder.encode(word)


def decode(body: bytes) -> AnyWord:
    return _decoder.decode(body)
