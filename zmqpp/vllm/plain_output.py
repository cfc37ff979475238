"""What nearly every step gives: a token for each request, and nothing else. See `plain_step.py`.

Thread: any. Source: ModelRunnerOutput (vllm/v1/outputs.py).
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import msgspec
from vllm.v1.outputs import ModelRunnerOutput

from zmqpp._shown import one_line
from zmqpp.errors import MalformedError
from zmqpp.vllm import codec
from zmqpp.vllm.step_checks import check_output

__all__ = ["PlainOutput", "decode", "encode"]


class PlainOutput(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Of each request its id, and the tokens that were sampled for it."""

    ids: list[str]
    sampled: list[list[int]]
    nans: dict[str, int] | None

    def output(self) -> ModelRunnerOutput:
        """What vLLM's scheduler takes."""
        index = {name: i for i, name in enumerate(self.ids)}
        return ModelRunnerOutput(self.ids, index, self.sampled, num_nans_in_logits=self.nans)


_HERE = {"req_ids", "req_id_to_index", "sampled_token_ids", "num_nans_in_logits"}
_REST = {name: value for name, value in vars(ModelRunnerOutput([], {})).items() if name not in _HERE}
_rest_of = itemgetter(*_REST)
_REST_VALUES = tuple(_REST.values())
_PLAIN = 0x90 | len(PlainOutput.__struct_fields__)
"""How msgpack begins an array of so many fields."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PlainOutput)


def encode(output: Any) -> bytes:
    """`output` as a payload.

    Raises:
        UnsupportedError: it holds what does not travel.
    """
    if not _is_plain(output):
        return codec.encode(output)
    try:
        return _encoder.encode(
            PlainOutput(output.req_ids, output.sampled_token_ids, output.num_nans_in_logits)
        )
    except (TypeError, OverflowError):
        return codec.encode(output)  # which has words for more


def _is_plain(output: Any) -> bool:
    if type(output) is not ModelRunnerOutput or len(output.sampled_token_ids or ()) != len(output.req_ids):
        return False
    if output.req_id_to_index != {name: i for i, name in enumerate(output.req_ids)}:
        return False
    try:
        return bool(_rest_of(vars(output)) == _REST_VALUES)
    except (KeyError, TypeError, ValueError, RuntimeError):
        return False  # something that cannot be compared, such as a tensor


def decode(payload: bytes) -> ModelRunnerOutput:
    """What `encode` was given.

    Raises:
        MalformedError: it is no output of a step.
    """
    if payload[:1] == bytes([_PLAIN]):
        try:
            return _decoder.decode(payload).output()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedError(
                f"a step's output of {len(payload)} bytes cannot be read: {one_line(error)}"
            ) from error
    output: ModelRunnerOutput = codec.decode(payload)
    check_output(output)
    return output
