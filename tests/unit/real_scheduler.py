"""vLLM's own scheduler, with no engine around it: a small KV cache of the embedded model, and its answers made up."""

from __future__ import annotations

from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from zmqpp.models import docs_llama

__all__ = ["PROMPT", "add_requests", "answer_step", "make_scheduler"]

_BLOCKS, _BLOCK = 512, 32
PROMPT = 8


def make_scheduler(batches: int, kind: type[Scheduler] = Scheduler, **more: Any) -> Any:
    arguments = EngineArgs(
        model=str(docs_llama()),
        max_model_len=512,
        block_size=_BLOCK,
        kv_cache_memory_bytes=64 << 20,
        pipeline_parallel_size=1,
        **{"max_num_seqs": 64, "max_num_batched_tokens": 256, **more},
    )
    config = arguments.create_engine_config()
    config.parallel_config.pipeline_parallel_size = batches
    config.cache_config.num_gpu_blocks = _BLOCKS
    spec = FullAttentionSpec(block_size=_BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    cache = KVCacheConfig(
        num_blocks=_BLOCKS,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    return kind(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=_BLOCK,
        log_stats=False,
    )


def add_requests(scheduler: Any, names: range, adapters: int = 0, tokens: int = 100) -> None:
    """With so many adapters, in turns; with 0, without. Each is to say so many `tokens`."""
    for name in names:
        number = 1 + name % adapters if adapters else 0
        adapter = LoRARequest(f"adapter {number}", number, "/nowhere") if adapters else None
        parameters = SamplingParams(max_tokens=tokens, ignore_eos=True)
        scheduler.add_request(
            Request(
                request_id=str(name),
                prompt_token_ids=[3] * PROMPT,
                sampling_params=parameters,
                pooling_params=None,
                lora_request=adapter,
            )
        )


def answer_step(scheduler: Any, step: Any, **more: Any) -> None:
    """The step came back: one token for each of its requests, and `more` on its output."""
    names = list(step.num_scheduled_tokens)
    output = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[7] for _ in names],
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
    for name, value in more.items():
        setattr(output, name, value)
    scheduler.update_from_output(step, output)
