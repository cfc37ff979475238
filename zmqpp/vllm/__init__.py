"""vLLM's side of zmqpp: the plugin, the executor and the stages. Importing this imports no vLLM."""

from zmqpp.vllm.options import StageOptions

__all__ = ["StageOptions"]
