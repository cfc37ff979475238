"""The tokens that Model Runner V2 lacks on the stages before the last one: the engine gives them with the next steps.

A V2 runner keeps each request's last token to itself. The last stage has it, the others embed it one step later, and
vLLM broadcasts it to them. Here it comes back to the engine anyway, as the step's output, and goes down the ring with
the next `exec`. With async scheduling a step is scheduled before the tokens that it decodes from are there: `needed`
says of which steps. Pieces of a prompt that is not complete need none. What was drafted goes the same way.

Thread: `take` by whichever reads the ring, everything else on the engine's.
Source: PPHandler, compute_need_sampled_mask (vllm/v1/worker/gpu/pp_utils.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError
from zmqpp.vllm.runner_choice import runner_of

__all__ = ["TokenFeedback", "feedback_for"]


def feedback_for(config: Any) -> TokenFeedback | None:
    """Of an engine with vLLM's `config`; None where its steps need none."""
    if runner_of(config) == "V1" or config.model_config.runner_type == "pooling":
        return None
    speculation = config.speculative_config
    drafts = speculation.num_speculative_tokens if speculation is not None else 0
    return TokenFeedback(config.model_config.get_vocab_size(), drafts)


class TokenFeedback:
    """Of one engine's steps, which have drawn tokens that others need.

    Args:
        vocabulary: of the model.
        drafts: most tokens that are drafted for a request.
    """

    def __init__(self, vocabulary: int, drafts: int = 0) -> None:
        self._vocabulary, self._most = vocabulary, 1 + drafts
        self._prefill: dict[str, int] = {}
        """Tokens of each request that the runners were given; from there on they are drawn."""
        self._drawn_in: dict[str, int] = {}
        """The latest step that draws a token of the request."""
        self._open: dict[int, Sequence[str]] = {}
        """Steps on the ring, with their requests in the order in which they were scheduled."""
        self._came: deque[control.Sampled] = deque()
        self._drafts: dict[str, list[int]] = {}
        """Those after the latest step of each request."""

    def needed(self, scheduled: Any) -> list[int]:
        """Steps on the ring whose tokens `scheduled` (a SchedulerOutput) computes, the earliest first."""
        cached, tokens = scheduled.scheduled_cached_reqs, scheduled.num_scheduled_tokens
        steps = set()
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if computed + tokens[name] > self._prefill.get(name, 0):
                steps.add(self._drawn_in.get(name, -1))
        return [step for step in sorted(steps) if step in self._open]

    def begin(self, step: int, scheduled: Any) -> list[control.Sampled]:
        """`scheduled` goes to the ring as `step`; what came since the last one, to go with it."""
        for name in (*scheduled.finished_req_ids, *(getattr(scheduled, "preempted_req_ids", None) or ())):
            self._prefill.pop(name, None)
            self._drawn_in.pop(name, None)
            self._drafts.pop(name, None)
        tokens, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request in scheduled.scheduled_new_reqs:
            self._prefill[request.req_id] = len(request.prefill_token_ids or ())
            self._drawn_in.pop(request.req_id, None)
            self._drafts.pop(request.req_id, None)
            computed[request.req_id] = request.num_computed_tokens
        for name, count in tokens.items():
            if computed[name] + count >= self._prefill.get(name, 0):
                self._drawn_in[name] = step
        came = [self._came.popleft() for _ in range(len(self._came))]
        if tokens:
            self._open[step] = list(tokens)
        return came

    def take(self, step: int, output: Any, drafts: Mapping[str, list[int]] | None = None) -> None:
        """`step` came back as `output`, vLLM's ModelRunnerOutput, with `drafts` for its requests.

        Raises:
            MalformedError: its tokens are none.
        """
        names = self._open.get(step)
        if names is None:
            return
        drawn = dict(zip(output.req_ids, output.sampled_token_ids, strict=False))
        tokens = [self._checked(drawn.get(name, [])) for name in names]
        drafts = drafts or {}
        # Of a request that is gone, or came anew, nobody computes them.
        self._drafts.update({name: drafts[name] for name in drafts if self._drawn_in.get(name) == step})
        # In this order: who finds the step closed finds its tokens here.
        rows = [drafts.get(name, []) for name in names] if drafts else []
        self._came.append(control.Sampled(step, tokens, rows))
        self._open.pop(step, None)

    def drafts_of(self, step: int) -> dict[str, list[int]]:
        """What was drafted for the requests of `step`, which is on the ring; copies."""
        return {name: list(self._drafts[name]) for name in self._open.get(step, ()) if name in self._drafts}

    def _checked(self, tokens: list[int]) -> list[int]:
        if len(tokens) <= self._most and all(type(t) is int and 0 <= t < self._vocabulary for t in tokens):
            return tokens
        raise MalformedError(f"the last stage's tokens of a request are {shown(tokens)}")

    def forget(self) -> None:
        """Whatever was on the ring is gone; requests that go on come as new ones."""
        self._prefill.clear()
        self._drawn_in.clear()
        self._open.clear()
        self._came.clear()
        self._drafts.clear()
