"""A request's thinking budget is the same matter after the request was away, or was put back with its tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

START, END = [1], [2, 3, 4]
VOCABULARY = 10


@pytest.fixture
def parts() -> Iterator[tuple[Any, Any, Any]]:
    """(KeptThinking or vLLM's own, made; SamplingParams of a budget; BatchUpdate)."""
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

    from zmqpp.vllm import reasoning
    from zmqpp.vllm.thinking import KeptThinking

    told = dict(zip(reasoning._IDS, (START, END, END), strict=True))
    config = reasoning.given(told)["reasoning_config"]

    def holder(own: bool) -> Any:
        made = KeptThinking if own else ThinkingBudgetStateHolder
        return made(config, 4, 0, torch.device("cpu"), False)

    yield holder, lambda budget: SamplingParams(thinking_token_budget=budget), BatchUpdate


class Request:
    """What would be sampled, but for the tokens that a holder forces."""

    def __init__(self, prompt: list[int], plan: list[int], params: Any) -> None:
        self.prompt, self.plan, self.params = prompt, plan, params
        self.outputs: list[int] = []

    def added(self, index: int) -> Any:
        return index, self.params, self.prompt, self.outputs


def sample(holder: Any, rows: list[Request]) -> None:
    import torch

    holder.update_state([row.outputs for row in rows], [[] for _ in rows])
    logits = torch.zeros(len(rows), VOCABULARY)
    for row, request in enumerate(rows):
        logits[row, request.plan[len(request.outputs)]] = 1
    logits = holder.apply_to_logits(logits, False, [[] for _ in rows])
    for row, request in enumerate(rows):
        request.outputs.append(int(logits[row].argmax()))


def plans() -> list[tuple[list[int], list[int], int]]:
    """Prompt, tokens that would be sampled, budget."""
    prompts = [[5], [5, *START, 6], [*START, 6, *END, 5]]
    outputs = [
        [6, *START, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
        [*START, 7, *END, 8, *START, 7, 7, 7, 7, 7, 7, 7],
        [2, 2, *START, 2, 7, 3, 7, 7, 7, 7, 7, 7, 7, 7],
        [7] * 14,
    ]
    return list(itertools.product(prompts, outputs, [0, 1, 3]))


def alone(parts: tuple[Any, Any, Any], prompt: list[int], plan: list[int], budget: int) -> list[int]:
    """As vLLM's own holder has it in one process, where the request stays in the batch."""
    holder, params, update = parts
    request, own = Request(prompt, plan, params(budget)), holder(False)
    own.sync_batch(update(1, [], [request.added(0)], []))
    for _ in range(12):
        sample(own, [request])
    return request.outputs


def test_batches_in_turn_change_nothing(parts: tuple[Any, Any, Any]) -> None:
    holder, params, update = parts
    kept = holder(True)
    requests = [Request(prompt, plan, params(budget)) for prompt, plan, budget in plans()]
    pairs = [requests[i : i + 2] for i in range(0, len(requests), 2)][:4]
    before = 0
    for _ in range(12):
        for pair in pairs:  # each one in the places of the one before
            kept.sync_batch(update(2, [0, 1][:before], [r.added(i) for i, r in enumerate(pair)], []))
            sample(kept, pair)
            before = 2
    for (prompt, plan, budget), request in zip(plans(), [r for pair in pairs for r in pair], strict=False):
        assert request.outputs == alone(parts, prompt, plan, budget)


def test_a_request_that_moves_in_the_batch_keeps_its_state(parts: tuple[Any, Any, Any]) -> None:
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    holder, params, update = parts
    kept = holder(True)
    first, second = (Request([5], [*START, *[7] * 12], params(budget)) for budget in (2, 4))
    kept.sync_batch(update(2, [], [first.added(0), second.added(1)], []))
    sample(kept, [first, second])
    kept.sync_batch(update(2, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    for _ in range(4):
        sample(kept, [second, first])
    kept.sync_batch(update(1, [0], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    for _ in range(7):
        sample(kept, [first])
    assert first.outputs == alone(parts, [5], [*START, *[7] * 12], 2)
    kept.sync_batch(update(1, [], [second.added(0)], []))
    for _ in range(7):
        sample(kept, [second])
    assert second.outputs == alone(parts, [5], [*START, *[7] * 12], 4)


def test_a_request_that_comes_with_tokens_goes_on_where_it_was(parts: tuple[Any, Any, Any]) -> None:
    holder, params, update = parts
    for prompt, plan, budget in plans():
        wanted = alone(parts, prompt, plan, budget)
        for known in range(12):
            kept, request = holder(True), Request(prompt, plan, params(budget))
            request.outputs.extend(wanted[:known])
            kept.sync_batch(update(1, [], [request.added(0)], []))
            for _ in range(12 - known):
                sample(kept, [request])
            assert request.outputs == wanted, (prompt, plan, budget, known)
