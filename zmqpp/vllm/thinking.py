"""Thinking budgets (`--reasoning-config`) on the last stage: where each request stands.

vLLM's holder (V1) makes what it knows of a request anew whenever the request comes into the batch. In one process that
is once; a stage has several batches in flight, and there it is before every step. A request that was put back after a
loss comes with tokens, too. So here what is known of a request stays, or is found again from its tokens.

Thread: the stage's main thread. Source: ThinkingBudgetStateHolder (vllm/v1/sample/thinking_budget_state.py).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import vllm.v1.worker.gpu_input_batch as gpu_input_batch
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

__all__ = ["KeptThinking", "keep_thinking"]

_MADE = "maybe_create_thinking_budget_state_holder"
_REQUEST = "zmqpp_request"
_KEPT_BATCHES = 8
"""What is known of so many batches of requests is kept; of others it is found again."""


def keep_thinking() -> None:
    """Before vLLM's worker is built: this process samples for several batches in turn."""

    def make(config: Any, *rest: Any) -> KeptThinking | None:
        return None if config is None else KeptThinking(config, *rest)

    setattr(gpu_input_batch, _MADE, make)


class KeptThinking(ThinkingBudgetStateHolder):  # type: ignore[misc]
    """vLLM's holder, for which a request that left the batch is the same one when it comes back."""

    def __init__(self, config: Any, max_num_seqs: int, *rest: Any) -> None:
        super().__init__(config, max_num_seqs, *rest)
        self._kept: OrderedDict[int, dict[str, Any]] = OrderedDict()  # by the identity of its parameters
        self._most = _KEPT_BATCHES * max_num_seqs
        self._marks = {*self.think_start_token_ids, *self.think_end_token_ids}

    def sync_batch(self, batch_update: Any) -> None:
        """As vLLM's."""
        if not batch_update:
            return
        for index in [*batch_update.removed, *(added[0] for added in batch_update.added)]:
            self._put_away(index)
        super().sync_batch(dataclasses.replace(batch_update, moved=[]))
        for index, params, _, outputs in batch_update.added:
            if index in self._state:
                self._take_back(index, params, outputs)
        super().sync_batch(dataclasses.replace(batch_update, removed=[], added=[]))

    def _put_away(self, index: int) -> None:
        state = self._state.pop(index, None)
        if state is None:
            return
        self._kept[id(state[_REQUEST])] = state
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _take_back(self, index: int, params: Any, outputs: list[int]) -> None:
        """What is kept holds its request's parameters, so that nothing else has their identity meanwhile."""
        kept = self._kept.pop(id(params), None)
        if kept is not None:
            self._state[index] = kept
        else:
            self._go_through(self._state[index], outputs)
        self._state[index][_REQUEST] = params

    def _go_through(self, state: dict[str, Any], outputs: list[int]) -> None:
        """As if each of `outputs` were sampled now: only those beside a start or an end change more than a count."""
        for count, token in enumerate(outputs):
            if token in self._marks or (count and outputs[count - 1] in self._marks):
                state["output_tok_ids"], state["spec_token_ids"] = outputs[:count], []
                state["in_spec_mode"], state["force_index"] = self.in_spec_mode, []
                self._update_think_state(state)
        state["output_tok_ids"] = outputs
