"""Whether a step that another stage sent can run here: every number that vLLM takes for an index lies in its range.

vLLM trusts its own scheduler and hands these numbers to kernels, which read and write wherever they point. Between
processes they are checked first. Costs what the step's new requests and blocks cost to look at once.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput

from zmqpp._shown import shown
from zmqpp.errors import MalformedError
from zmqpp.vllm.wire_types import wrong_field

__all__ = [
    *("StepLimits", "check_blocks", "check_grammar", "check_numbers", "check_output", "check_restored"),
    *("check_step", "groups_with_blocks", "require"),
]

_MASK_BITS = 32
"""Tokens in one number of a grammar mask."""


@dataclass(frozen=True)
class StepLimits:
    """What this stage's model runner has room for."""

    tokens: int
    """Of one step."""
    requests: int
    length: int
    """Tokens of one request."""
    blocks: int
    """Of the KV cache."""
    groups: int
    vocabulary: int

    @classmethod
    def of(cls, runner: Any) -> StepLimits:
        """As vLLM's runner was brought up."""
        cache = runner.kv_cache_config
        return cls(
            tokens=runner.max_num_tokens,
            requests=runner.max_num_reqs,
            length=runner.max_model_len,
            blocks=cache.num_blocks,
            groups=groups_with_blocks(cache),
            vocabulary=runner.model_config.get_vocab_size(),
        )


def groups_with_blocks(cache: Any) -> int:
    """Groups of layers for which the scheduler hands out blocks.

    Model Runner V1 adds one without to its own list, of layers that attend to all of a prompt at once.
    """
    return sum(
        not isinstance(group.kv_cache_spec, EncoderOnlyAttentionSpec) for group in cache.kv_cache_groups
    )


def check_step(step: Any, tokens: int, known: Container[str], limits: StepLimits) -> None:
    """Refuse a step that cannot be one.

    Args:
        tokens: how many its message says it has.
        known: ids of the requests that were sent before.
    Raises:
        MalformedError: what in it is wrong.
    """
    require(type(step) is SchedulerOutput, "a step", step)
    scheduled = step.num_scheduled_tokens
    require(type(scheduled) is dict and len(scheduled) <= limits.requests, "its requests", scheduled)
    for name, count in scheduled.items():
        require(type(name) is str and type(count) is int and count > 0, "scheduled tokens", (name, count))
    total = step.total_num_scheduled_tokens
    require(sum(scheduled.values()) == total == tokens <= limits.tokens, "its tokens", total)
    _check_ids(step.finished_req_ids, set, "finished requests")
    new, cached = step.scheduled_new_reqs, step.scheduled_cached_reqs
    require(type(new) is list and type(cached) is CachedRequestData, "requests of", step)
    _check_requests(new, limits)
    for request in new:
        check_blocks(request.block_ids, limits)
    _check_cached(cached, known, step.finished_req_ids, limits)
    ids = [request.req_id for request in new] + cached.req_ids
    require(len(ids) == len(scheduled) and scheduled.keys() == set(ids), "scheduled requests", ids)
    computed = [request.num_computed_tokens for request in new] + cached.num_computed_tokens
    for name, before in zip(ids, computed, strict=True):
        require(before + scheduled[name] <= limits.length, "a request's length", (name, before))
    _check_rest(step, limits)


def check_restored(requests: Any, outputs: Any, limits: StepLimits) -> None:
    """Refuse requests that cannot go on here with what they are said to have generated."""
    _check_requests(requests, limits)
    for request in requests:
        require(request.block_ids == (), "blocks of a request that has none yet", request.block_ids)
    # They may be more than run at a time: those that had to make room for others have begun too.
    require(type(outputs) is list and len(outputs) == len(requests), "outputs", outputs)
    for tokens in outputs:
        check_numbers(tokens, limits.vocabulary, "an output")
        require(len(tokens) <= limits.length, "an output of", len(tokens))


def check_output(output: Any) -> None:
    """Refuse what the last stage gives for a step's output, if it is none.

    Raises:
        MalformedError: it is another object, or not made of what it says.
    """
    if type(output) is not ModelRunnerOutput:
        raise MalformedError(f"the last stage's output of a step is {shown(type(output).__name__)}")
    sampled, ids = output.sampled_token_ids, output.req_ids
    whole = type(sampled) is list and set(map(type, sampled)) <= {list}
    if (
        not whole
        or type(ids) is not list
        or output.req_id_to_index != {name: i for i, name in enumerate(ids)}
    ):
        raise MalformedError(
            f"the last stage's output of a step is of {shown(ids)}, and does not fit together"
        )


def check_grammar(grammar: Any, limits: StepLimits) -> None:
    """Refuse a mask that is not one row of bits over the vocabulary for each of its places."""
    require(type(grammar) is GrammarOutput, "a grammar mask", grammar)
    _check_ids(grammar.structured_output_request_ids, list, "masked requests")
    mask, words = grammar.grammar_bitmask, -(-limits.vocabulary // _MASK_BITS)
    fits = type(mask) is np.ndarray and mask.dtype == np.int32 and mask.ndim == 2 and mask.shape[1] == words
    require(fits, "a grammar mask of", getattr(mask, "shape", mask))
    ids = grammar.structured_output_request_ids
    require(len(mask) >= len(ids), "rows of a grammar mask", len(mask))
    drafts = getattr(grammar, "num_acceptable_drafts", None)  # not in every version
    require(drafts is None or (type(drafts) is list and len(drafts) == len(ids)), "masked drafts", drafts)
    check_numbers(drafts or [], limits.length, "masked drafts")


def _check_requests(requests: Any, limits: StepLimits) -> None:
    require(type(requests) is list, "new requests", requests)
    for request in requests:
        require(type(request) is NewRequestData and type(request.req_id) is str, "a new request", request)
        if request.prompt_token_ids is not None:
            check_numbers(request.prompt_token_ids, limits.vocabulary, "a prompt")
            require(len(request.prompt_token_ids) <= limits.length, "a prompt of", request.req_id)
        if request.prefill_token_ids is not None:
            check_numbers(request.prefill_token_ids, limits.vocabulary, "a prefill")
            require(len(request.prefill_token_ids) <= limits.length, "a prefill of", request.req_id)
        require(_is_number(request.num_computed_tokens, limits.length), "computed tokens of", request.req_id)
        _check_parameters(request, limits)


def _check_parameters(request: NewRequestData, limits: StepLimits) -> None:
    sampling, pooling, lora = request.sampling_params, request.pooling_params, request.lora_request
    for given, kind in ((sampling, SamplingParams), (pooling, PoolingParams), (lora, LoRARequest)):
        require(given is None or type(given) is kind, f"a {kind.__name__}", given)
    embeds = request.prompt_embeds
    require(embeds is None or isinstance(embeds, torch.Tensor), "prompt embeddings", embeds)
    require(embeds is not None or request.prompt_token_ids is not None, "a prompt of", request.req_id)
    require(type(request.mm_features) is list, "features", request.mm_features)
    if sampling is None:
        return
    require((wrong := wrong_field(sampling)) is None, "a sampling parameter:", wrong)
    for count in (sampling.logprobs, sampling.prompt_logprobs):
        require(count is None or -1 <= count <= limits.vocabulary, "logprobs", count)
    seed = sampling.seed
    require(seed is None or -(1 << 63) <= seed < 1 << 64, "a seed", seed)
    require(
        0 <= sampling.temperature < math.inf and 0 < sampling.top_p <= 1 and 0 <= sampling.min_p <= 1,
        "chances",
        sampling,
    )
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty)
    require(all(map(math.isfinite, penalties)), "penalties", penalties)
    require(sampling.top_k >= -1, "top_k", sampling.top_k)  # beyond the vocabulary vLLM takes all of it
    require(sampling.repetition_penalty > 0, "a repetition penalty", sampling.repetition_penalty)
    require(0 <= sampling.min_tokens < 1 << 31, "tokens at least", sampling.min_tokens)
    tokens = [*(sampling.logit_bias or ()), *(sampling.allowed_token_ids or ())]
    tokens += sampling.all_stop_token_ids if sampling.min_tokens else ()
    tokens += [token for word in sampling.bad_words_token_ids or () for token in word]
    check_numbers(tokens, limits.vocabulary, "tokens of sampling parameters")


def _check_cached(cached: CachedRequestData, known: Container[str], gone: Any, limits: StepLimits) -> None:
    _check_ids(cached.req_ids, list, "running requests")
    for name in cached.req_ids:
        require(name in known and name not in gone, "an unknown request", name)
    _check_ids(cached.resumed_req_ids, set, "resumed requests")
    for each in (cached.new_block_ids, cached.num_computed_tokens, cached.num_output_tokens):
        require(type(each) is list and len(each) == len(cached.req_ids), "running requests'", each)
    for blocks in cached.new_block_ids:
        if blocks is not None:
            check_blocks(blocks, limits)
    check_numbers(cached.num_computed_tokens, limits.length, "computed tokens")
    check_numbers(cached.num_output_tokens, limits.length + 1, "output tokens")
    require(type(cached.new_token_ids) is list, "new tokens", cached.new_token_ids)
    require(len(cached.new_token_ids) in (0, len(cached.req_ids)), "new tokens", cached.new_token_ids)
    require(type(cached.all_token_ids) is dict, "all tokens", cached.all_token_ids)
    for tokens in (*cached.new_token_ids, *cached.all_token_ids.values()):
        check_numbers(tokens, limits.vocabulary, "tokens")


def _check_rest(step: SchedulerOutput, limits: StepLimits) -> None:
    drafts = step.scheduled_spec_decode_tokens
    require(type(drafts) is dict and drafts.keys() <= step.num_scheduled_tokens.keys(), "drafts", drafts)
    for tokens in drafts.values():
        check_numbers(tokens, limits.vocabulary, "drafted tokens", least=-1)
    require(type(step.scheduled_encoder_inputs) is dict, "encoder inputs", step.scheduled_encoder_inputs)
    preempted = getattr(step, "preempted_req_ids", None)
    if preempted is not None:
        _check_ids(preempted, set, "preempted requests")
    require(type(step.free_encoder_mm_hashes) is list, "encoder hashes", step.free_encoder_mm_hashes)
    check_numbers(getattr(step, "new_block_ids_to_zero", None) or [], limits.blocks, "blocks to clear")
    for copied in getattr(step, "kv_cache_block_copies", None) or []:
        check_numbers(list(copied), limits.blocks, "blocks to copy")


def check_blocks(blocks: Any, limits: StepLimits) -> None:
    """A request's blocks, a list for each group of the KV cache."""
    require(type(blocks) is tuple and len(blocks) == limits.groups, "blocks", blocks)
    for group in blocks:
        check_numbers(group, limits.blocks, "blocks")


def _check_ids(ids: Any, kind: type, what: str) -> None:
    require(type(ids) is kind and all(type(name) is str for name in ids), what, ids)


def check_numbers(numbers: Any, end: int, what: str, least: int = 0) -> None:
    """A list of ints in `least` .. `end` - 1; long ones are looked at in C."""
    require(type(numbers) is list and set(map(type, numbers)) <= {int}, what, numbers)
    require(not numbers or (min(numbers) >= least and max(numbers) < end), f"{what} beyond {end}:", numbers)


def _is_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def require(holds: bool, what: str, found: Any) -> None:
    """Raise MalformedError about `found`, unless it holds."""
    if not holds:
        raise MalformedError(f"a step from stage 0 cannot run: {what} {shown(found)}")
