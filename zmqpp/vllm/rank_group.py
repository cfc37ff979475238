"""The pipeline group on a stage of several tensor-parallel ranks: activations come to rank 0, which shares them.

    rank 0      link ──> tensors ──broadcast in vLLM's tensor-parallel group──> ranks 1 ..
    rank 0      tensors ──> link                                                ranks 1 .. : the same tensors, dropped

What they look like goes ahead through a pipe, in which the others wait asleep while nothing has come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from zmqpp.errors import StageError, UnsupportedError
from zmqpp.tickets import Done
from zmqpp.transport import Link
from zmqpp.vllm.group import PipelineGroup
from zmqpp.vllm.rank_words import Abandon, AnyWord, Tensors

__all__ = ["FollowingGroup", "LeadingGroup", "StepAbandonedError"]


class StepAbandonedError(StageError):
    """The activations of this step will not come. Never leaves the rank's process."""


class LeadingGroup(PipelineGroup):
    """Rank 0's.

    Args:
        tell: gives a word to all other ranks.
    """

    def __init__(
        self,
        link: Link,
        stage: int,
        total_stages: int,
        device: torch.device,
        timeout_s: float,
        tell: Callable[[AnyWord], None],
    ) -> None:
        super().__init__(link, stage, total_stages, device, timeout_s)
        self._tell = tell

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[Any]:
        """This rank's tensors are the stage's: all ranks hold the same."""
        _check_same(all_gather_tensors)
        return super().isend_tensor_dict(tensor_dict, dst)

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: Any = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> tuple[dict[str, Any], list[Any], list[Callable[[], None]]]:
        """As for a stage of one rank; who waits for it lets the others have it too."""
        _check_same(all_gather_tensors)
        target, (received,), _ = super().irecv_tensor_dict(src)
        return target, [_Shared(received, target, self)], []

    def share(self, tensors: dict[str, Any]) -> None:
        """Give `tensors` to the other ranks, in the place where these wait for them."""
        like = []
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise UnsupportedError(
                    f"stage {self.rank}: {name} of its activations is no tensor, which only a stage of one rank takes"
                )
            like.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)))
        self._tell(Tensors(self.step, like))
        group = get_tp_group()
        for tensor in tensors.values():
            group.broadcast(tensor.contiguous(), 0)


class _Shared:
    def __init__(self, received: Any, target: dict[str, Any], group: LeadingGroup) -> None:
        self._received, self._target, self._group = received, target, group

    def is_completed(self) -> bool:
        return bool(self._received.is_completed())

    def wait(self) -> None:
        self._received.wait()
        self._group.share(self._target)


class FollowingGroup(PipelineGroup):
    """Of the other ranks: there is no link.

    Args:
        listen: the next word of rank 0; blocks.
    """

    def __init__(
        self, stage: int, total_stages: int, device: torch.device, listen: Callable[[], AnyWord]
    ) -> None:
        super().__init__(None, stage, total_stages, device, 0.0)  # type: ignore[arg-type]
        self._listen = listen

    def use_device(self, device: torch.device) -> None:
        self.device = device

    def isend_tensor_dict(self, tensor_dict: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Rank 0 sends them."""
        return [Done(), Done()]

    def irecv_tensor_dict(
        self, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], list[Any], list[Callable[[], None]]]:
        """The dict is empty until the handle was waited for."""
        target: dict[str, Any] = {}
        return target, [_Followed(target, self)], []

    def take(self) -> dict[str, torch.Tensor]:
        """What rank 0 shares.

        Raises:
            StepAbandonedError: it has nothing to share.
        """
        word = self._listen()
        if isinstance(word, Abandon):
            raise StepAbandonedError(f"step {word.step}")
        if not isinstance(word, Tensors) or word.step != self.step:
            raise StageError(f"step {self.step}: rank 0 says {type(word).__name__} in place of its tensors")
        group = get_tp_group()
        taken = {}
        for name, dtype, shape in word.like:
            taken[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            group.broadcast(taken[name], 0)
        return taken


class _Followed:
    def __init__(self, target: dict[str, Any], group: FollowingGroup) -> None:
        self._target, self._group, self._done = target, group, False

    def is_completed(self) -> bool:
        return self._done

    def wait(self) -> None:
        if not self._done:
            self._target.update(self._group.take())
            self._done = True


def _check_same(gathered: dict[str, bool] | None) -> None:
    """vLLM marks with False what each rank holds a different part of (sequence parallelism)."""
    if gathered and not all(gathered.values()):
        raise UnsupportedError(
            "sequence parallelism is not supported with external stages yet: leave enable_sp out of the passes"
        )
