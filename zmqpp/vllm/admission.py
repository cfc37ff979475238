"""What a stage would refuse is refused where it comes in, alone: inside a step it would take all others with it.

Thread: vLLM's input thread, beside the engine's. Source: EngineCore.preprocess_add_request (vllm/v1/engine/core.py),
whose errors vLLM answers to the one who asked.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import NewRequestData

from zmqpp.config import TransportConfig
from zmqpp.errors import UnsupportedError
from zmqpp.vllm import codec
from zmqpp.vllm.bereft import Bereft
from zmqpp.vllm.step_checks import StepLimits, check_restored

__all__ = ["Admission"]

_ROOM = 128 << 10
"""For what else is in the message: the step's other requests."""


class Admission:
    """Checks each request as every stage will, on its way there and when it is restored.

    Args:
        vllm_config: of an engine over external stages.
        bereft: what may be gone that a request leans on.
        transport: of the links.
    """

    def __init__(self, vllm_config: Any, bereft: Bereft, transport: TransportConfig) -> None:
        self._bereft, self._largest = bereft, transport.max_control_bytes - _ROOM
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
        self._bereft.check(request)
        sampling = request.sampling_params
        if sampling is not None:
            # More tokens than a request can have mean all of them; stages count them in 32 bits.
            sampling.min_tokens = min(sampling.min_tokens, self._limits.length)
        begun = [NewRequestData.from_request(request, ())]
        body = codec.encode(begun)
        if len(body) > self._largest:
            raise UnsupportedError(
                f"a request of {len(body)} bytes, with its pictures or embeddings: {self._largest} is the largest that "
                f"stages are sent; set ZMQPP_MAX_CONTROL_BYTES to more on every stage"
            )
        check_restored(codec.decode(body), [[]], self._limits)
