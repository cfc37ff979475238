"""Drafts that were accepted, on the stages before the last one, which do not sample.

vLLM's scheduler tells such a stage one new token a step, the last one. Of a step that accepted drafts there are more,
and a runner that leaves the request out of one batch, as happens in a pipeline all the time, would build it up again
without them. They are known here: what was drafted was computed here, and how far it was accepted says the next step.

Thread: the stage's main thread. Source: GPUModelRunner._update_states, for ranks that are not the last.
"""

from __future__ import annotations

from typing import Any

__all__ = ["AcceptedDrafts"]


class AcceptedDrafts:
    """Of one stage's requests, what was drafted in the last step of each."""

    def __init__(self) -> None:
        self._drafts: dict[str, list[int]] = {}

    def catch_up(self, runner: Any, step: Any) -> None:
        """Give `runner` the tokens that it computed, and that `step` says were accepted."""
        for name in step.finished_req_ids:
            self._drafts.pop(name, None)
        cached = step.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            drafted, state = self._drafts.pop(name, None), runner.requests.get(name)
            if drafted is not None and state is not None:
                _append(runner.input_batch, name, state, drafted[: max(0, computed - state.num_tokens)])
        for name, tokens in step.scheduled_spec_decode_tokens.items():
            self._drafts[name] = list(tokens)


def _append(batch: Any, name: str, state: Any, tokens: list[int]) -> None:
    if not tokens:
        return
    state.output_token_ids.extend(tokens)
    row = batch.req_id_to_index.get(name)
    if row is None:
        return
    start = int(batch.num_tokens_no_spec[row])
    batch.token_ids_cpu[row, start : start + len(tokens)] = tokens
    batch.is_token_ids[row, start : start + len(tokens)] = True
    batch.num_tokens_no_spec[row] = start + len(tokens)
