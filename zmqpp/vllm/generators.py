"""Seeded sampling on the CPU when a prompt is computed in pieces.

The sampler draws for every row of a step; what it drew for a prompt that is not complete yet is taken back by moving
the generator's offset, which a CPU generator does not have (_bookkeeping_sync in vllm/v1/worker/gpu_model_runner.py).
A request that is resumed after a loss computes its prompt and its output anew, so this happens to short prompts too.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["make_rewindable"]


class RewindingGenerator(torch.Generator):
    """A CPU generator whose last draw can be taken back, in the words that vLLM has for it."""

    kept: torch.Tensor
    """Its state before the step."""

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        """Whatever `offset` is: to where it was before the step."""
        self.set_state(self.kept)


def make_rewindable(runner: Any) -> None:
    """Let `runner` (a V1 model runner on the CPU) take draws back."""
    update = runner._update_states

    def update_states(scheduler_output: Any) -> Any:
        result = update(scheduler_output)
        for request_id, index in runner.input_batch.req_id_to_index.items():
            state = runner.requests[request_id]
            if state.generator is not None:
                state.generator = _rewinding(state.generator)
                state.generator.kept = state.generator.get_state()
                runner.input_batch.generators[index] = state.generator
        return result

    runner._update_states = update_states


def _rewinding(generator: torch.Generator) -> RewindingGenerator:
    if isinstance(generator, RewindingGenerator):
        return generator
    made = RewindingGenerator(device="cpu")
    made.set_state(generator.get_state())
    return made
