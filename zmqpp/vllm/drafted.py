"""What the last stage has drafted after a step, with Model Runner V2: copied to the host while the next step runs.

vLLM drafts for pieces of a prompt too. By the time its scheduler heard of that, the last piece may be on its way, and
the request no prefill any more: it would compute drafts behind a token that is not known yet. They are left out.

Thread: made on the stage's main thread, read on the one that replies.
Source: DraftTokensHandler (vllm/v1/worker/gpu/spec_decode/utils.py), which copies those of grammars only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.v1.outputs import DraftTokenIds

__all__ = ["Drafted"]


class Drafted:
    """Of one step.

    Args:
        names: its requests, in the order of the batch.
        tokens: drafted for each; int64 [n, drafts], -1 behind the last one. Nobody else's.
        counts: how many tokens each of them drew; int32 [n].
    Stream: ordered after work already queued on the current CUDA stream; does not block it.
    """

    def __init__(self, names: Sequence[str], tokens: torch.Tensor, counts: torch.Tensor) -> None:
        self._names = list(names)
        self._tokens = tokens.to("cpu", non_blocking=True)
        self._counts = counts.to("cpu", non_blocking=True, copy=True)
        self._landed: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._landed = torch.cuda.Event(blocking=True)
            self._landed.record()

    def read(self) -> DraftTokenIds:
        """Once they are on the host."""
        if self._landed is not None:
            self._landed.synchronize()
        rows = zip(self._tokens.tolist(), self._counts.tolist(), strict=True)
        tokens = [[token for token in row if token >= 0] if drew else [] for row, drew in rows]
        return DraftTokenIds(self._names, tokens)
