"""The pipeline group of one stage: vLLM's GroupCoordinator with a zmqpp link in place of torch.distributed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.distributed.parallel_state import GroupCoordinator

from zmqpp._shown import shown
from zmqpp.errors import TensorMismatchError, UnsupportedError
from zmqpp.tickets import Done, RecvTicket, SendTicket
from zmqpp.transport import Link
from zmqpp.watch.recorder import Recorder


class _Received:
    """Fills the dict that was handed out when the receive was posted.

    A model may name what it has nothing for (MiniCPM its residual): vLLM's buffer for that stays as it is, zeros.
    """

    def __init__(self, ticket: RecvTicket, target: dict[str, Any], group: PipelineGroup) -> None:
        self._ticket, self._target, self._group = ticket, target, group

    def is_completed(self) -> bool:
        return self._ticket.is_completed()

    def wait(self) -> None:
        with self._group.recorder.waiting():
            received = self._ticket.wait()
        received = {name: value for name, value in received.items() if value is not None}
        self._group.check(received)
        self._target.update(received)


class _Sent:
    """Tells the recorder how long the sender had to wait before its buffers may be overwritten."""

    def __init__(self, ticket: SendTicket, recorder: Recorder) -> None:
        self._ticket, self._recorder = ticket, recorder

    def is_completed(self) -> bool:
        return self._ticket.is_completed()

    def wait(self) -> None:
        with self._recorder.sending():
            self._ticket.wait()


class PipelineGroup(GroupCoordinator):
    """Stages 0..N-1 as ranks 0..N-1; tensors go to the next rank only and come from the one before.

    Built without GroupCoordinator's constructor: there is no process group behind it.
    Source: contract of GroupCoordinator (vllm/distributed/parallel_state.py) as used by Worker.execute_model.
    """

    def __init__(
        self, link: Link, stage: int, total_stages: int, device: torch.device, timeout_s: float
    ) -> None:
        self.link = link
        self.step = 0
        """Step being run; the tag that sender and receiver must agree on. Set by the stage loop."""
        self.timeout_s = timeout_s
        self.recorder = Recorder()
        self.rank = self.rank_in_group = stage
        self.ranks = list(range(total_stages))
        self.group_ranks = [self.ranks]
        self.world_size = total_stages
        self.local_rank = self.device_index = 0
        self.device = device
        self.unique_name = "pp:zmqpp"
        self.cpu_group = self.device_group = None  # type: ignore[assignment]
        self.device_communicator = None
        self.mq_broadcaster = None
        self.use_device_communicator = False
        self.use_custom_op_call = False
        self.use_cpu_custom_send_recv = False
        self._pending_isends = deque()
        self._expected: dict[str, Any] | None = None
        self._buffers: dict[str, Any] = {}
        self._warms_up = False

    def expect(self, activations: Any) -> None:
        """Take only tensors like those of `activations`, vLLM's buffers for them, from now on; None: take any."""
        if activations is not None:
            self._buffers = dict(activations.items())
            self._expected = {name: held.shape[1:] for name, held in activations.items()}

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Nothing is sent, and vLLM's own buffers are what is received: a stage may warm up while the others serve.

        Model Runner V2 warms up by whole steps (vllm/v1/worker/gpu/warmup.py), on GPUs.
        """
        self._warms_up = True
        try:
            yield
        finally:
            self._warms_up = False

    def use_device(self, device: torch.device) -> None:
        """Take activations there from now on, wherever the stage before computed them."""
        self.device = device
        if device.type == "cuda":
            self.link.use_device(device, everything=True)

    def check(self, received: dict[str, Any]) -> None:
        """Raise TensorMismatchError where `received` are not the activations that this stage's model takes."""
        for name, value in received.items() if self._expected is not None else ():
            wanted = self._expected.get(name)
            if wanted is None or not isinstance(value, torch.Tensor) or value.shape[1:] != wanted:
                like = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise TensorMismatchError(
                    f"stage {self.rank}: step {self.step}: {shown(name)} from stage {self.rank - 1} is {shown(like)}: "
                    f"not an activation of this model"
                )

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[Any]:
        """Post this step's activations to the next stage; returns [metadata handle, send handle]."""
        self._check_neighbour("dst", dst, (self.rank + 1) % self.world_size)
        if self._warms_up:
            return [Done(), Done()]
        with self.recorder.sending():
            ticket = self.link.isend_dict(tensor_dict, tag=self.step, timeout_s=self.timeout_s)
        return [Done(), _Sent(ticket, self.recorder)]

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> tuple[dict[str, Any], list[Any], list[Callable[[], None]]]:
        """Post the receive of this step's activations; the dict is empty until the handle was waited for."""
        self._check_neighbour("src", src, (self.rank - 1) % self.world_size)
        if self._warms_up:
            return dict(self._buffers), [], []
        target: dict[str, Any] = {}
        ticket = self.link.irecv_dict(tag=self.step, timeout_s=self.timeout_s)
        return target, [_Received(ticket, target, self)], []

    def send_tensor_dict(self, tensor_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Blocking form of `isend_tensor_dict`."""
        for handle in self.isend_tensor_dict(tensor_dict, *args, **kwargs):
            handle.wait()

    def recv_tensor_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Blocking form of `irecv_tensor_dict`."""
        target, handles, _ = self.irecv_tensor_dict(*args, **kwargs)
        for handle in handles:
            handle.wait()
        return target

    def _check_neighbour(self, name: str, given: int | None, only: int) -> None:
        if given is not None and given != only:
            raise UnsupportedError(
                f"stage {self.rank} can only reach {name}={only} over the ring, not {given}"
            )

    def broadcast_tensor_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: external stages have no collective over the pipeline."""
        raise UnsupportedError("a broadcast over pipeline stages is not available with external stages")

    def barrier(self) -> None:
        """Nothing to wait for: stages are ordered by their steps."""

    def destroy(self) -> None:
        """The link belongs to the stage, which closes it."""
