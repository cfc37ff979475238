"""What a stage would refuse is refused where it comes in, alone: inside a step it would take all others with it.

Thread: vLLM's input thread, beside the engine's. Source: EngineCore.preprocess_add_request (vllm/v1/engine/core.py),
whose errors vLLM answers to the one who asked.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import NewRequestData

from zmqpp.vllm import codec
from zmqpp.vllm.step_checks import StepLimits, check_restored

__all__ = ["Admission"]


class Admission:
    """Checks each request as every stage will, on its way there and when it is restored.

    Args:
        vllm_config: of an engine over external stages.
    """

    def __init__(self, vllm_config: Any) -> None:
        model, scheduling = vllm_config.model_config, vllm_config.scheduler_config
        self._limits = StepLimits(
            tokens=scheduling.max_num_batched_tokens,
            requests=scheduling.max_num_seqs,
            length=model.max_model_len,
            blocks=0,
            groups=0,
            vocabulary=model.get_vocab_size(),
        )

    def check(self, request: Any) -> None:
        """Raises ZmqppError: vLLM's Request cannot be computed by stages; with what of it."""
        sampling = request.sampling_params
        if sampling is not None:
            # More tokens than a request can have mean all of them; stages count them in 32 bits.
            sampling.min_tokens = min(sampling.min_tokens, self._limits.length)
        begun = [NewRequestData.from_request(request, ())]
        check_restored(codec.decode(codec.encode(begun)), [[]], self._limits)
