"""Tensor dicts between the ranks of a ring: vLLM's GroupCoordinator verbs over one link.

with ZeroMQCommunicator(rank=0, bind="127.0.0.1:15550", connect="127.0.0.1:15551") as comm:
    comm.send_tensor_dict({"hidden_states": hidden})
    result = comm.recv_tensor_dict()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from zmqpp.errors import ConfigError, TensorMismatchError, UnsupportedError
from zmqpp.tickets import Done, RecvTicket
from zmqpp.transport import Link, check_device

__all__ = ["AllGatherGroup", "Handle", "ZeroMQCommunicator"]

TensorDict = dict[str, Any]

LANES = ("auto", "tcp")
"""Ways payload can move in this release."""

_SLICES = "\0slices"
"""Reserved key: full shapes of the tensors of which only this rank's slice travels."""


class Handle(Protocol):
    """An operation in flight. Source: `Handle` of vLLM's distributed/parallel_state.py."""

    def is_completed(self) -> bool: ...

    def wait(self) -> None: ...


class AllGatherGroup(Protocol):
    """What is needed of the tensor-parallel group whose ranks each carry a slice."""

    world_size: int
    rank_in_group: int

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor: ...


class ZeroMQCommunicator:
    """One rank of a ring: it sends to rank + 1 and receives from rank - 1, nowhere else.

    Args:
        rank: 0 <= rank < world_size.
        world_size: 1 is a ring of one, where nothing moves.
        bind: where the next rank connects, see `zmqpp.endpoint`; None = this rank only receives.
        connect: the previous rank's `bound` address; None = this rank only sends.
        lane: how payload moves; one of `LANES`.
        device: where tensors go that were not in CPU memory at the sender; None = CPU memory.
        timeout_ms: deadline of every operation that is given none; finite and above 0.
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
        lane: str = "auto",
        device: torch.device | str | None = None,
        timeout_ms: float = 300_000,
    ) -> None:
        if not (_is_int(world_size) and world_size >= 1):
            raise ConfigError(f"world_size={world_size!r} must be an int of at least 1")
        if not (_is_int(rank) and 0 <= rank < world_size):
            raise ConfigError(f"rank={rank!r} must be an int within 0..{world_size - 1}")
        if lane not in LANES:
            raise UnsupportedError(f"lane {lane!r} is not available; use one of {', '.join(LANES)}")
        self.rank, self.world_size = rank, world_size
        self._timeout_s = _seconds(timeout_ms)
        if not self._timeout_s:
            raise ConfigError("timeout_ms=0 must be positive; 0 is for single operations")
        self._link: Link | None = None
        device = check_device(device)
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
        handles = self.isend_tensor_dict(
            tensor_dict, dst, all_gather_group, all_gather_tensors, timeout_ms=timeout_ms
        )
        for handle in handles:
            handle.wait()
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
        self._check_neighbour("src", src, self.previous_rank)
        values = self._require_link().recv_dict(timeout_s=self._deadline_s(timeout_ms))
        _gather(values, values.pop(_SLICES, {}), all_gather_group, all_gather_tensors)
        return values

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
        outgoing = _slice(tensor_dict, all_gather_group, all_gather_tensors)
        ticket = self._require_link().isend_dict(outgoing, timeout_s=self._deadline_s(timeout_ms))
        return [Done(), ticket]

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: AllGatherGroup | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
        *,
        timeout_ms: float | None = None,
    ) -> tuple[TensorDict | None, list[Handle], list[Callable[[], None]]]:
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
            [lambda: _gather(values, receiving.slices, all_gather_group, all_gather_tensors)],
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
        self._ticket: RecvTicket | None = ticket
        self._values = values
        self.slices: Any = {}  # name -> full shape, of the tensors of which a slice came

    def is_completed(self) -> bool:
        return self._ticket is None or self._ticket.is_completed()

    def wait(self) -> None:
        if self._ticket is not None:
            got = self._ticket.wait()
            self.slices = got.pop(_SLICES, {})
            self._values.update(got)
            self._ticket = None


# ---- slices of replicated tensors ------------------------------------------------------------------------


def _slice(values: TensorDict, group: AllGatherGroup | None, overrides: dict[str, bool] | None) -> TensorDict:
    """`values` with this rank's part of each tensor that is to be gathered, and the shapes they came from."""
    if type(values) is dict and _SLICES in values:
        raise ConfigError(f"the key {_SLICES!r} is reserved")
    if type(values) is not dict or group is None or group.world_size == 1:
        return values
    out, shapes = dict(values), {}
    for key, value in values.items():
        if isinstance(value, torch.Tensor) and _is_sliced(key, value.numel(), group, overrides):
            shapes[key] = list(value.shape)
            out[key] = value.reshape(group.world_size, -1)[group.rank_in_group]
    if shapes:
        out[_SLICES] = shapes
    return out


def _gather(
    values: TensorDict, shapes: Any, group: AllGatherGroup | None, overrides: dict[str, bool] | None
) -> None:
    """Replace every slice by the whole tensor, in place; `shapes` are what they were cut from."""
    if not isinstance(shapes, dict):
        raise TensorMismatchError("receive: malformed shapes of sliced tensors")
    expected = _expected_slices(values, shapes, group, overrides)
    if expected != set(shapes):
        raise TensorMismatchError(
            f"receive: the sender sliced {sorted(shapes)}, this rank expects {sorted(expected)}; "
            "give both sides the same all_gather_group size and all_gather_tensors"
        )
    for key, shape in shapes.items():
        part = values[key]
        if group is None or not isinstance(part, torch.Tensor):
            raise TensorMismatchError(f"receive: {key!r} was sliced, but is no tensor")
        values[key] = group.all_gather(part, dim=0).reshape(shape)


def _expected_slices(
    values: TensorDict, shapes: TensorDict, group: AllGatherGroup | None, overrides: dict[str, bool] | None
) -> set[str]:
    if group is None or group.world_size == 1:
        return set()
    expected = set()
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            numel = value.numel() * group.world_size if key in shapes else value.numel()
            if _is_sliced(key, numel, group, overrides):
                expected.add(key)
    return expected


# Source: GroupCoordinator._should_use_all_gather; empty tensors are never sliced.
def _is_sliced(key: str, numel: int, group: AllGatherGroup, overrides: dict[str, bool] | None) -> bool:
    divides = numel > 0 and numel % group.world_size == 0
    return divides and (overrides or {}).get(key, divides)


def _seconds(timeout_ms: float) -> float:
    is_number = isinstance(timeout_ms, (int, float)) and not isinstance(timeout_ms, bool)
    if not is_number or not 0 <= timeout_ms <= _MAX_TIMEOUT_MS:  # neither NaN nor infinity
        raise ConfigError(f"timeout_ms={timeout_ms!r} must be a finite number of milliseconds, 0 or more")
    return timeout_ms / 1000


_MAX_TIMEOUT_MS = 1e12
"""30 years; beyond, seconds and clocks begin to overflow."""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
