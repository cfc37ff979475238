"""What an engine had a stage do while it served goes with it: the next one knows of none of it.

Thread: the stage's main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqpp.vllm.greeting import StartOver

if TYPE_CHECKING:
    from zmqpp.vllm.worker import StageWorker

__all__ = ["forget_engine"]


def forget_engine(worker: StageWorker) -> None:
    """Another engine has come to this stage, which keeps its weights.

    Adapters leave: vLLM counts them from 1 in every server, so the next one's would be taken for those of the last.

    Raises:
        StartOver: the weights themselves were thrown away.
    """
    if worker.put_away.is_lost:
        raise StartOver(f"stage {worker.stage}: stage 0 came back, and the weights were put away for good")
    if worker.put_away.tags:
        worker.call("wake_up", (), {})
    if worker.config.lora_config is not None:
        for adapter in sorted(worker.call("list_loras", (), {})[0]):
            worker.call("remove_lora", (adapter,), {})
