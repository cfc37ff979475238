"""The private names of vLLM's Model Runner V2 that zmqpp leans on; looked at where V2 runs only.

After the platform's worker: on CPU that one replaces what the modules of V2 import. Walked by its own contract test.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from zmqpp.errors import UnsupportedError
from zmqpp.vllm import compat

SUPPORTED_VLLM = ("0.32",)
"""Minor versions of vLLM whose Model Runner V2 is known here."""

SYMBOLS: dict[str, str] = {
    "vllm.v1.worker.gpu.pp_utils:PPHandler": "replaced: tokens come with the steps",
    "vllm.v1.worker.gpu.pp_utils:compute_need_sampled_mask": "which requests of a step draw a token",
    "vllm.v1.worker.gpu.model_runner:PPHandler": "the same name, imported there",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.finish_requests": "forgets requests",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.reset_encoder_cache": "forgets what was computed of images",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.update_pp_decode_requests": "takes tokens in",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample_tokens": "ends a step on every stage",
    "vllm.v1.worker.gpu.states:RequestState": "which requests the runner knows",
    "vllm.sequence:IntermediateTensors": "activations, in a signature",
    "vllm.utils.torch_utils:async_tensor_h2d": "brings tokens to the device",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler": "schedules steps before tokens are there",
}


def modules() -> list[ModuleType]:
    """The modules of Model Runner V2 that name `PPHandler`.

    Raises:
        UnsupportedError: what V2 consists of is not what is known here.
    """
    compat.worker_modules()
    if moved := [name for name in SYMBOLS if not compat.exists(name)]:
        raise UnsupportedError(
            f"vLLM {compat.vllm_version()}: its Model Runner V2 lacks {moved[0]}, which zmqpp needs: "
            f"set VLLM_USE_V2_MODEL_RUNNER=0, on every stage"
        )
    return [importlib.import_module(f"vllm.v1.worker.gpu.{name}") for name in ("pp_utils", "model_runner")]


def need_sampled_mask() -> Any:
    """`compute_need_sampled_mask(input_batch)`: a bool array of its requests, or None."""
    return modules()[0].compute_need_sampled_mask


def uploader() -> Any:
    """`async_tensor_h2d(array, device=…)`: from the host, without waiting for the device."""
    return importlib.import_module("vllm.utils.torch_utils").async_tensor_h2d
