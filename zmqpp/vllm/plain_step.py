"""The step that nearly every step is, in words of its own: requests that run on, and nothing else about them.

A SchedulerOutput has dozens of fields, and between two steps whatever reads them has left the processor's caches: what
the general codec and its checks do in 80 us while they are warm takes 400. A plain step is one msgspec Struct, read and
checked for its types in C. All other steps take the general codec (`plain_form.py`).

Thread: any. Source: Scheduler.schedule (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from itertools import chain
from operator import add
from typing import Any

import msgspec
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

from zmqpp.vllm import codec
from zmqpp.vllm.plain_form import PlainForm
from zmqpp.vllm.step_checks import StepLimits, check_blocks, check_numbers, require

__all__ = ["PlainStep", "decode", "encode", "scheduled"]


class PlainStep(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Lists of one item a request, in the order in which they are scheduled."""

    ids: list[str]
    counts: list[int]
    """Tokens of this step."""
    computed: list[int]
    outputs: list[int]
    blocks: list[tuple[list[int], ...] | None]
    tokens: list[list[int]]
    """Model Runner V1: what the last stage has sampled, for the stages before it; else empty."""
    finished: list[str]
    preempted: list[str] | None
    common: list[int]

    def check(self, tokens: int, known: Any, limits: StepLimits) -> None:
        """As `check_step`, for what this can be.

        Raises:
            MalformedError: what in it is wrong.
        """
        ids, counts, count = self.ids, self.counts, len(self.ids)
        names = set(ids)
        require(0 < count <= limits.requests and len(names) == count, "its requests", ids)
        lengths = {len(counts), len(self.computed), len(self.outputs), len(self.blocks)}
        require(lengths == {count} and len(self.tokens) in (0, count), "running requests", lengths)
        require(all(map(known.__contains__, ids)), "an unknown request", ids)
        require(names.isdisjoint(self.finished), "finished requests", self.finished)
        require(min(counts) > 0 and sum(counts) == tokens <= limits.tokens, "its tokens", counts)
        require(min(self.computed) >= 0, "computed tokens", self.computed)
        require(max(map(add, self.computed, counts)) <= limits.length, "a request's length", self.computed)
        check_numbers(self.outputs, limits.length + 1, "output tokens")
        check_numbers(list(chain.from_iterable(self.tokens)), limits.vocabulary, "tokens")
        for blocks in filter(None, self.blocks):
            check_blocks(blocks, limits)

    def scheduled(self) -> SchedulerOutput:
        """What vLLM's worker takes."""
        cached = CachedRequestData.__new__(CachedRequestData)
        cached.__dict__.update(
            req_ids=self.ids,
            resumed_req_ids=set(),
            new_token_ids=self.tokens,
            all_token_ids={},
            new_block_ids=self.blocks,
            num_computed_tokens=self.computed,
            num_output_tokens=self.outputs,
        )
        step = SchedulerOutput.__new__(SchedulerOutput)
        step.__dict__.update(_FORM.rest)
        step.__dict__.update({name: kind() for name, kind in _CONTAINERS})
        step.__dict__.update(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=dict(zip(self.ids, self.counts, strict=True)),
            total_num_scheduled_tokens=sum(self.counts),
            finished_req_ids=set(self.finished),
            preempted_req_ids=None if self.preempted is None else set(self.preempted),
            num_common_prefix_blocks=self.common,
        )
        return step


_HERE = (
    *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "total_num_scheduled_tokens"),
    *("finished_req_ids", "preempted_req_ids", "num_common_prefix_blocks"),
)
_CACHED = {
    *("req_ids", "resumed_req_ids", "new_token_ids", "all_token_ids", "new_block_ids"),
    *("num_computed_tokens", "num_output_tokens"),
}
_EMPTY = SchedulerOutput.make_empty()
_FORM = PlainForm(PlainStep, _EMPTY, _HERE, "a step")
_CONTAINERS = [
    (name, type(value)) for name, value in _FORM.rest.items() if isinstance(value, (list, dict, set))
]
_IS_KNOWN = vars(_EMPTY.scheduled_cached_reqs).keys() == _CACHED and hasattr(_EMPTY, "preempted_req_ids")


def encode(step: SchedulerOutput) -> bytes:
    """`step` as a payload.

    Raises:
        UnsupportedError: it holds what does not travel.
    """
    if not _is_plain(step):
        return codec.encode(step)
    cached, preempted = step.scheduled_cached_reqs, step.preempted_req_ids
    plain = PlainStep(
        cached.req_ids,
        list(step.num_scheduled_tokens.values()),
        cached.num_computed_tokens,
        cached.num_output_tokens,
        cached.new_block_ids,
        cached.new_token_ids,
        list(step.finished_req_ids),
        None if preempted is None else list(preempted),
        step.num_common_prefix_blocks,
    )
    return _FORM.encode(plain, step)


def _is_plain(step: SchedulerOutput) -> bool:
    cached = step.scheduled_cached_reqs
    if not _IS_KNOWN or step.scheduled_new_reqs or cached.resumed_req_ids or cached.all_token_ids:
        return False
    if not cached.req_ids or list(step.num_scheduled_tokens) != cached.req_ids:
        return False
    return _FORM.has_plain_rest(step)


def decode(payload: bytes) -> Any:
    """A PlainStep, or whatever else `encode` was given.

    Raises:
        MalformedError: `encode` did not write it.
    """
    plain = _FORM.decode(payload)
    return codec.decode(payload) if plain is None else plain


def scheduled(payload: bytes) -> Any:
    """What `encode` was given, unchecked."""
    step = decode(payload)
    return step.scheduled() if type(step) is PlainStep else step
