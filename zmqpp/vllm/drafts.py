"""Speculative decoding over stages: the last one drafts, and its drafts come back with the step they follow.

vLLM's engine asks for drafts right after it has scheduled a step, which over a pipeline is before the step's tokens are
there: it would wait for the whole ring, and add drafts to a request whose last token it does not know. Here they are
given to its scheduler when that step's output has been taken in, so that batches in flight stay in flight.

With async scheduling vLLM counts on as many drafts as there may be, and schedules them before it knows any. It has to
know those of requests under a grammar: either by then, or before the step's mask is made.

Thread: the engine's. Source: EngineCore.post_step, step_with_batch_queue, Scheduler.update_draft_token_ids.
"""

from __future__ import annotations

from typing import Any, Literal

from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import RequestStatus

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError, UnsupportedError
from zmqpp.vllm import codec, compat, plain_output

__all__ = [
    *("METHODS", "check_drafts", "check_method", "drafts_after", "follow_up_drafts"),
    *("open_output", "speculation"),
]

METHODS = {"V1": ("ngram",), "V2": ("ngram", "ngram_gpu")}
"""Of each model runner: whose drafts come from tokens alone. No stage needs a draft model, or hidden states of others.

V1's ngram_gpu pins memory, so it needs a GPU: it was not tried.
"""
_FIELDS = ("method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
_DRAFTS = "zmqpp_drafts"


def check_method(config: Any, runner: Literal["V1", "V2"]) -> None:
    """Raises UnsupportedError for vLLM's SpeculativeConfig of another method, or if vLLM cannot do it; None is fine."""
    if config is None:
        return
    if not compat.can_accept_drafts():
        raise UnsupportedError(
            f"vLLM {compat.vllm_version()} cannot speculate where Triton has no driver, as here, nor in one process: "
            "install 0.31 or newer, or leave --speculative-config out"
        )
    if config.method in METHODS[runner]:
        return
    if config.method in METHODS["V2"]:
        raise UnsupportedError(
            f"speculative decoding by {config.method!r} needs Model Runner V2 with external stages: "
            f"set VLLM_USE_V2_MODEL_RUNNER=1, or use 'ngram'"
        )
    raise UnsupportedError(
        f"speculative decoding by {config.method!r} is not supported with external stages yet: "
        f"use {' or '.join(METHODS[runner])}, or leave it out"
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


def drafts_after(output: Any) -> dict[str, list[int]]:
    """What was drafted after a step, by request; as `open_output` gave it."""
    drafts = getattr(output, _DRAFTS, None)
    return dict(zip(drafts.req_ids, drafts.draft_token_ids, strict=True)) if drafts is not None else {}


def follow_up_drafts(scheduler: Any, ahead: bool) -> None:
    """From now on `scheduler` has a step's drafts as soon as it has its tokens; safe to call twice.

    Args:
        ahead: async scheduling. Then it takes those of requests under a grammar which it has not scheduled meanwhile.
    """
    if getattr(scheduler, "takes_drafts", False):
        return
    plain = scheduler.update_from_output

    def update(step: Any, output: Any) -> Any:
        outputs = plain(step, output)
        drafts = {
            name: row
            for name, row in drafts_after(output).items()
            if _takes(request := scheduler.requests.get(name)) and (not ahead or _awaits(request))
        }
        if drafts:
            scheduler.update_draft_token_ids(DraftTokenIds(list(drafts), list(drafts.values())))
        return outputs

    scheduler.update_from_output, scheduler.takes_drafts = update, True


def _takes(request: Any) -> bool:
    """Not one that was preempted with that step on the ring.

    It would keep them when it runs again, and have them computed before the token that comes in front of them.
    """
    return request is not None and request.status == RequestStatus.RUNNING


def _awaits(request: Any) -> bool:
    return request.use_structured_output and not request.num_output_placeholders


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
