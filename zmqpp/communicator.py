"""Tensor dicts between the ranks of a ring: vLLM's GroupCoordinator verbs over one link.

with ZeroMQCommunicator(rank=0, bind="127.0.0.1:15550", connect="127.0.0.1:15551") as comm:
    comm.send_tensor_dict({"hidden_states": hidden})
    result = comm.recv_tensor_dict()

In asyncio, handles are awaited, and dicts come one after another:

    for handle in comm.isend_tensor_dict({"hidden_states": hidden}):
        await handle
    async for result in comm.recv_tensor_dicts():
        ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

import torch

from zmqpp import _slices
from zmqpp._opening import check_device
from zmqpp._slices import AllGatherGroup, TensorDict
from zmqpp.config import LANES, TransportConfig
from zmqpp.errors import ConfigError, UnsupportedError
from zmqpp.tickets import Done, RecvTicket
from zmqpp.transport import Link

__all__ = ["LANES", "AllGatherGroup", "Handle", "ReceiveHandle", "ZeroMQCommunicator"]


class Handle(Protocol):
    """An operation in flight; `await handle` is `wait()` that leaves the event loop running.

    Source: `Handle` of vLLM's distributed/parallel_state.py.
    """

    def is_completed(self) -> bool: ...

    def wait(self) -> None: ...

    def __await__(self) -> Generator[Any, None, None]: ...


class ReceiveHandle(Handle, Protocol):
    """A receive in flight. Cancelling the task that awaits it cancels the receive, too."""

    def cancel(self) -> bool:
        """Give it up; its dict goes to the next receive. False: too late, or a thread waits for it."""


class ZeroMQCommunicator:
    """One rank of a ring: it sends to rank + 1 and receives from rank - 1, nowhere else.

    Args:
        rank: 0 <= rank < world_size.
        world_size: 1 is a ring of one, where nothing moves.
        bind: where the next rank connects, see `zmqpp.endpoint`; None = this rank only receives.
        connect: the previous rank's `bound` address; None = this rank only sends.
        lane: how payload moves; one of `LANES`: "auto" is shared memory where both ranks can open it, and the
            socket elsewhere. None = what ZMQPP_LANE says, or "auto".
        device: where tensors go that were not in CPU memory at the sender; None = CPU memory.
        timeout_ms: deadline of every operation that is given none; finite and above 0.
        curve_dir: folder of the ring's keys, made by `zmqpp keygen`, the same keys on every rank: links are
            encrypted, and let in only who has them too. None = what ZMQPP_CURVE_DIR says, or none.
        compression: of large float tensors that this rank sends: "fp8", "int8" or "none"; the receiver, who needs no
            setting for it, gets them close to what they were. None = what ZMQPP_COMPRESSION says, or none.
    Raises:
        ConfigError: an argument is wrong. UnsupportedError: a lane of a later release.
        ConnectError: `bind` is in use, or not an address of this machine.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 2,
        *,
        bind: str | int | None = None,
        connect: str | None = None,
        lane: str | None = None,
        device: torch.device | str | None = None,
        timeout_ms: float = 300_000,
        curve_dir: str | os.PathLike[str] | None = None,
        compression: str | None = None,
    ) -> None:
        if not (_is_int(world_size) and world_size >= 1):
            raise ConfigError(f"world_size={world_size!r} must be an int of at least 1")
        if not (_is_int(rank) and 0 <= rank < world_size):
            raise ConfigError(f"rank={rank!r} must be an int within 0..{world_size - 1}")
        if lane is not None and lane not in LANES:
            raise UnsupportedError(f"lane {lane!r} is not available; use one of {', '.join(LANES)}")
        self.rank, self.world_size = rank, world_size
        self._timeout_s = _seconds(timeout_ms)
        if not self._timeout_s:
            raise ConfigError("timeout_ms=0 must be positive; 0 is for single operations")
        self._link: Link | None = None
        device = check_device(device)
        config = TransportConfig.from_env()
        if curve_dir is not None:
            config = replace(config, curve_dir=os.fspath(curve_dir))
        if compression is not None:
            config = replace(config, compression=compression)
        if world_size == 1:
            return
        self._link = Link(
            bind=bind,
            connect=connect,
            name=f"rank {rank}",
            previous=f"rank {self.previous_rank}",
            next=f"rank {self.next_rank}",
            device=device,
            rank=rank,
            world_size=world_size,
            lane=lane,
            config=config,
        )

    @property
    def next_rank(self) -> int:
        """The rank this one sends to."""
        return (self.rank + 1) % self.world_size

    @property
    def previous_rank(self) -> int:
        """The rank this one receives from."""
        return (self.rank - 1) % self.world_size

    @property
    def bound(self) -> str | None:
        """The address the next rank connects to; None without `bind`."""
        return self._link.bound if self._link else None

    def send_tensor_dict(
        self,
        tensor_dict: TensorDict,
        dst: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> TensorDict | None:
        """Send `tensor_dict` to rank `dst`; returns when its tensors may be overwritten.

        Args:
            tensor_dict: name -> tensor, array, None, bool, int, float, str, bytes, list or dict of these. What
                is not in tensors, arrays or bytes and str of more than 64 KiB is limited to 16 MiB in all.
            dst: the next rank, which None means.
            all_gather_group: its ranks hold the same tensors; each sends a slice, the receiver gathers them.
            all_gather_tensors: name -> whether to slice it; by default what its size divides evenly.
            timeout_ms: for the whole call; None = the communicator's.
        Returns:
            None; in a ring of one, `tensor_dict` itself.
        Raises:
            ConfigError (a ValueError): `dst`, no `bind`, or too large. UnsupportedError (a TypeError): a value.
            SendTimeout, ConnectTimeout, PoolTimeout: the deadline. PeerLostError: `dst` closed or died.
        Source: contract of vLLM GroupCoordinator.send_tensor_dict (distributed/parallel_state.py).
        """
        if self.world_size == 1:
            return tensor_dict
        if dst is not None:
            self._check_neighbour("dst", dst, self.next_rank)
        outgoing = _slices.cut(tensor_dict, all_gather_group, all_gather_tensors)
        self._require_link().send_dict(outgoing, timeout_s=self._deadline_s(timeout_ms))
        return None

    def recv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> TensorDict | None:
        """The next dict from rank `src`; in a ring of one, None.

        Args: as `send_tensor_dict`; the group and overrides must be those of the sender.
        Raises:
            RecvTimeout: nothing came; it is left for the next call. PeerLostError: `src` is gone.
            TensorMismatchError: the sender sliced other tensors than this rank expects.
            ConfigError (a ValueError): `src`, or opened without `connect`.
        Source: contract of vLLM GroupCoordinator.recv_tensor_dict (distributed/parallel_state.py).
        """
        if self.world_size == 1:
            return None
        if src is not None:
            self._check_neighbour("src", src, self.previous_rank)
        values = self._require_link().recv_dict(timeout_s=self._deadline_s(timeout_ms))
        return _slices.whole(values, all_gather_group, all_gather_tensors)

    async def recv_tensor_dicts(
        self,
        src: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> AsyncGenerator[TensorDict, None]:
        """Every dict from rank `src` until it closes; in a ring of one, none.

        Whoever stops iterating leaves the next dict to the next receive.
        Args and errors: as `recv_tensor_dict`; `timeout_ms` is for each dict.
        """
        if self.world_size == 1:
            return
        self._check_neighbour("src", src, self.previous_rank)
        dicts = self._require_link().dicts(timeout_s=self._deadline_s(timeout_ms))
        async with aclosing(dicts):
            async for values in dicts:
                yield _slices.whole(values, all_gather_group, all_gather_tensors)

    def isend_tensor_dict(
        self,
        tensor_dict: TensorDict,
        dst: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> list[Handle]:
        """Start sending; after `wait()` on the handles the tensors may be overwritten; they may be dropped.

        Returns two: vLLM takes the first for the metadata's and waits for the rest (`_pp_send_work`).
        Args and errors: as `send_tensor_dict`; what happens later is raised by `wait()`.
        """
        if self.world_size == 1:
            return []
        self._check_neighbour("dst", dst, self.next_rank)
        outgoing = _slices.cut(tensor_dict, all_gather_group, all_gather_tensors)
        ticket = self._require_link().isend_dict(outgoing, timeout_s=self._deadline_s(timeout_ms))
        return [Done(), ticket]

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> tuple[TensorDict | None, list[ReceiveHandle], list[Callable[[], None]]]:
        """Start receiving: (dict, handles to wait for, postprocess to call then), then the dict is complete.

        It never blocks, where vLLM waits for the metadata: until `wait()` the dict is *empty*. vLLM's worker
        reads it only through AsyncIntermediateTensors, which waits first; it prepares its batch meanwhile.
        Args and errors: as `recv_tensor_dict`; what happens later is raised by `wait()` and postprocess.
        """
        if self.world_size == 1:
            return None, [], []
        self._check_neighbour("src", src, self.previous_rank)
        values: TensorDict = {}
        ticket = self._require_link().irecv_dict(timeout_s=self._deadline_s(timeout_ms))
        receiving = _Receiving(ticket, values)
        return (
            values,
            [receiving],
            [lambda: _slices.gather(values, receiving.shapes, all_gather_group, all_gather_tensors)],
        )

    def wait_peers(self, timeout_ms: float | None = None) -> None:
        """Return when both neighbours are connected. Raises ConnectTimeout naming who is missing."""
        if self._link:
            self._link.wait_peers(self._deadline_s(timeout_ms))

    def stats(self) -> dict[str, Any]:
        """Counters of the link since it opened (see `Link.stats`); empty in a ring of one."""
        return self._link.stats() if self._link else {}

    def close(self) -> None:
        """Send what is queued if the peer is there, and free everything. Idempotent and silent."""
        if self._link:
            self._link.close()

    def __enter__(self) -> ZeroMQCommunicator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_link(self) -> Link:
        if self._link is None:
            raise ConfigError("a ring of one has no link")
        return self._link

    def _check_neighbour(self, name: str, given: int | None, only: int) -> None:
        if given is not None and given != only:
            raise ConfigError(
                f"rank {self.rank} of {self.world_size} can only reach {name}={only}, not {given!r}"
            )

    def _deadline_s(self, timeout_ms: float | None) -> float:
        return self._timeout_s if timeout_ms is None else _seconds(timeout_ms)


class _Receiving:
    """Fills the dict that was handed out when the receive was posted, once, however often one waits."""

    def __init__(self, ticket: RecvTicket, values: TensorDict) -> None:
        self._ticket = ticket
        self._values = values
        self._filled = False
        self._filling = threading.Lock()
        self.shapes: Any = {}  # of the tensors of which a slice came

    def is_completed(self) -> bool:
        return self._ticket.is_completed()

    def wait(self) -> None:
        self._fill(self._ticket.wait())

    def __await__(self) -> Generator[Any, None, None]:
        self._fill((yield from self._ticket.__await__()))

    def cancel(self) -> bool:
        return self._ticket.cancel()

    def _fill(self, got: TensorDict) -> None:
        with self._filling:
            if not self._filled:
                self.shapes = _slices.take_shapes(got)
                self._values.update(got)
                self._filled = True


def _seconds(timeout_ms: float) -> float:
    is_number = isinstance(timeout_ms, (int, float)) and not isinstance(timeout_ms, bool)
    if not is_number or not 0 <= timeout_ms <= _MAX_TIMEOUT_MS:  # neither NaN nor infinity
        raise ConfigError(f"timeout_ms={timeout_ms!r} must be a finite number of milliseconds, 0 or more")
    return timeout_ms / 1000


_MAX_TIMEOUT_MS = 1e12
"""30 years; beyond, seconds and clocks begin to overflow."""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
