"""Requests in a stage's model runner (V1): all forgotten, or put back as they stood when a stage was lost.

In inference mode, as vLLM runs its steps: tensors that it has made there may be changed nowhere else.

Thread: the stage's main thread. Source: GPUModelRunner._update_states (vllm/v1/worker/gpu_model_runner.py): requests
that are scheduled are added to the batch, those that are not stay known, those that finished are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput

from zmqpp.vllm.step_checks import groups_with_blocks

__all__ = ["finish_sends", "forget", "restore"]


def finish_sends(worker: Any) -> None:
    """Wait until the last step's activations may be overwritten, as vLLM does when the next one begins.

    Raises:
        ZmqppError: their link broke.
    """
    for handle in worker._pp_send_work:
        handle.wait()
    worker._pp_send_work = []


@torch.inference_mode()
def forget(worker: Any) -> None:
    """Let go of every request and of whatever a step that was cut off has left behind."""
    runner = worker.model_runner
    worker._pp_send_work = []  # what it waits for was lost with its link
    runner.execute_model_state = None
    runner.reset_encoder_cache()
    _update(runner, finished_req_ids=set(runner.requests))


@torch.inference_mode()
def restore(worker: Any, requests: Sequence[Any], outputs: Sequence[Sequence[int]], *, samples: bool) -> None:
    """Make `requests` known as preempted ones, so that the scheduler's next word on them resumes them.

    Args:
        requests: vLLM's NewRequestData, without blocks and computed tokens.
        outputs: the tokens that each has generated so far.
        samples: whether this stage does; then seeded generators go on from where they were.
    """
    runner = worker.model_runner
    for request, tokens in zip(requests, outputs, strict=True):
        request.block_ids = tuple([0] for _ in range(groups_with_blocks(runner.kv_cache_config)))
        _update(
            runner,
            scheduled_new_reqs=[request],
            num_scheduled_tokens={request.req_id: 1},
            total_num_scheduled_tokens=1,
        )
        _update(runner)
        state = runner.requests[request.req_id]
        state.output_token_ids.extend(tokens)
        if tokens:
            runner.num_prompt_logprobs.pop(request.req_id, None)  # They were given with the first token.
        if samples and state.generator is not None:
            _draw_again(runner, state.generator, len(tokens))


def _draw_again(runner: Any, generator: torch.Generator, times: int) -> None:
    """Let the sampler draw as often as it has for this request, from any logits: the draws are the same."""
    sampler = runner.sampler.topk_topp_sampler
    logits = torch.zeros((1, runner.input_batch.vocab_size), dtype=torch.float32, device=runner.device)
    for _ in range(times):
        sampler(logits.clone(), {0: generator}, None, None)


def _update(runner: Any, **fields: Any) -> None:
    output = SchedulerOutput.make_empty()
    for name, value in fields.items():
        setattr(output, name, value)
    runner._update_states(output)
