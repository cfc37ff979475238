"""Speculative decoding over stages: the last one drafts, and its drafts come back with the step they follow.

vLLM's engine asks for drafts right after it has scheduled a step, which over a pipeline is before the step's tokens are
there: it would wait for the whole ring, and add drafts to a request whose last token it does not know. Here they are
given to its scheduler when that step's output has been taken in, so that batches in flight stay in flight.

Thread: the engine's. Source: EngineCore.post_step, Scheduler.update_draft_token_ids.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm import codec, plain_output

__all__ = ["METHODS", "check_drafts", "check_method", "follow_up_drafts", "open_output", "speculation"]

METHODS = ("ngram",)
"""Whose drafts come from the tokens alone: no stage needs a draft model, or hidden states of others."""
_FIELDS = ("method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
_DRAFTS = "zmqpp_drafts"


def check_method(config: Any) -> None:
    """Raises UnsupportedError for vLLM's SpeculativeConfig of another method; None is fine."""
    if config is not None and config.method not in METHODS:
        raise UnsupportedError(
            f"speculative decoding by {config.method!r} is not supported with external stages yet: "
            f"use {' or '.join(METHODS)}, or leave it out"
        )


def speculation(config: Any) -> dict[str, Any] | None:
    """`--speculative-config` as each stage needs it; None without one."""
    if config is None:
        return None
    return {name: value for name in _FIELDS if (value := getattr(config, name, None)) is not None}


def open_output(reply: control.StepReply, vocabulary: int, longest: int) -> ModelRunnerOutput:
    """The step's ModelRunnerOutput, with what was drafted after it.

    Args:
        vocabulary: of the model. longest: most tokens that may be drafted for a request.
    Raises:
        MalformedError: `reply` is none of a step.
    """
    output = plain_output.decode(reply.payload)
    if reply.drafts is not None:
        setattr(output, _DRAFTS, check_drafts(codec.decode(reply.drafts), vocabulary, longest))
    return output


def follow_up_drafts(scheduler: Any) -> None:
    """From now on `scheduler` has a step's drafts as soon as it has its tokens; safe to call twice."""
    if getattr(scheduler, "takes_drafts", False):
        return
    plain = scheduler.update_from_output

    def update(step: Any, output: Any) -> Any:
        outputs = plain(step, output)
        drafts = getattr(output, _DRAFTS, None)
        if drafts is not None:
            scheduler.update_draft_token_ids(drafts)
        return outputs

    scheduler.update_from_output, scheduler.takes_drafts = update, True


def check_drafts(drafts: Any, vocabulary: int, longest: int) -> DraftTokenIds | None:
    """What the last stage drafted, if it can be that.

    Raises:
        MalformedError: it cannot.
    """
    if drafts is None:
        return None
    if type(drafts) is DraftTokenIds and _are_drafts(drafts, vocabulary, longest):
        return drafts
    raise MalformedError(f"the last stage's drafts are none: {shown(drafts)}")


def _are_drafts(drafts: DraftTokenIds, vocabulary: int, longest: int) -> bool:
    names, tokens = drafts.req_ids, drafts.draft_token_ids
    if type(names) is not list or type(tokens) is not list or len(names) != len(tokens):
        return False
    if any(type(name) is not str for name in names):
        return False
    return all(
        type(row) is list and len(row) <= longest and all(type(t) is int and 0 <= t < vocabulary for t in row)
        for row in tokens
    )
