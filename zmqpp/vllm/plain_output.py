"""What nearly every step gives: a token for each request, and nothing else. See `plain_step.py`.

Thread: any. Source: ModelRunnerOutput (vllm/v1/outputs.py).
"""

from __future__ import annotations

from typing import Any

import msgspec
from vllm.v1.outputs import ModelRunnerOutput

from zmqpp.vllm import codec
from zmqpp.vllm.plain_form import PlainForm
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


_HERE = ("req_ids", "req_id_to_index", "sampled_token_ids", "num_nans_in_logits")
_FORM = PlainForm(PlainOutput, ModelRunnerOutput([], {}), _HERE, "a step's output")


def encode(output: Any) -> bytes:
    """`output` as a payload.

    Raises:
        UnsupportedError: it holds what does not travel.
    """
    if not _is_plain(output):
        return codec.encode(output)
    plain = PlainOutput(output.req_ids, output.sampled_token_ids, output.num_nans_in_logits)
    return _FORM.encode(plain, output)


def _is_plain(output: Any) -> bool:
    if type(output) is not ModelRunnerOutput or len(output.sampled_token_ids or ()) != len(output.req_ids):
        return False
    if output.req_id_to_index != {name: i for i, name in enumerate(output.req_ids)}:
        return False
    return _FORM.has_plain_rest(output)


def decode(payload: bytes) -> ModelRunnerOutput:
    """What `encode` was given.

    Raises:
        MalformedError: it is no output of a step.
    """
    if (plain := _FORM.decode(payload)) is not None:
        return plain.output()
    output: ModelRunnerOutput = codec.decode(payload)
    check_output(output)
    return output
