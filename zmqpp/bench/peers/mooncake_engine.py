"""How fast is Mooncake's transfer engine over TCP, its way without RDMA hardware?"""

from __future__ import annotations

import os
from typing import Any

import torch

from zmqpp.bench.payload import Tensors
from zmqpp.bench.peers.slots import SlotRing
from zmqpp.bench.transport import Place, Unavailable

_COUNT_BYTES = 16


class Mooncake(SlotRing):
    """An engine a side, found by its own peer-to-peer handshake; the counts are written behind the dict.

    Its notifications are not used: each takes a request of its own, which is slower than writing 16 bytes more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._engine: Any = None
        self._address = self._peer = ""
        self._registered: list[int] = []
        self._remote_slots: list[list[int]] = []
        self._remote_counts = 0
        self._counts_out = torch.zeros(2, dtype=torch.int64)
        self._counts_in = torch.zeros(2, dtype=torch.int64)

    def open(self, place: Place) -> str:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from mooncake.engine import TransferEngine
        except ImportError as error:
            raise Unavailable(f"Mooncake does not import: {error}") from None
        self._place = place
        self._engine = TransferEngine()
        code = self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "")
        if code:
            raise Unavailable(f"Mooncake's engine does not start: code {code}")
        self._address = f"127.0.0.1:{self._engine.get_rpc_port()}"
        return ""

    def close(self) -> None:
        if self._engine is not None:
            self._disconnect()
            self._engine = None

    def _connect(self) -> None:
        assert self._place is not None
        for tensor in (self._counts_in, self._counts_out):
            self._register(tensor)
        for slot in self._slots:
            for tensor in slot.values():
                self._register(tensor)
        mine = [[tensor.data_ptr() for tensor in slot.values()] for slot in self._slots]
        self._peer, self._remote_slots, self._remote_counts = self._place.swap(
            (self._address, mine, self._counts_in.data_ptr())
        )

    def _disconnect(self) -> None:
        for pointer in self._registered:
            self._engine.unregister_memory(pointer)
        self._registered.clear()

    def _register(self, tensor: torch.Tensor) -> None:
        if tensor.data_ptr() not in self._registered:
            self._check(self._engine.register_memory(tensor.data_ptr(), tensor.nbytes))
            self._registered.append(tensor.data_ptr())

    def _write(self, slot: int, tensors: Tensors, sent: int, released: int) -> None:
        for tensor in tensors.values():
            self._register(tensor)
        sources = [tensor.data_ptr() for tensor in tensors.values()]
        sizes = [tensor.nbytes for tensor in tensors.values()]
        self._check(
            self._engine.batch_transfer_sync_write(self._peer, sources, self._remote_slots[slot], sizes)
        )
        self._tell(sent, released)

    def _tell(self, sent: int, released: int) -> None:
        self._counts_out[0], self._counts_out[1] = sent, released
        self._check(
            self._engine.transfer_sync_write(
                self._peer, self._counts_out.data_ptr(), self._remote_counts, _COUNT_BYTES
            )
        )

    def _poll(self) -> None:
        arrived, acknowledged = self._counts_in.tolist()
        self._note(arrived, acknowledged)

    def _check(self, code: int) -> None:
        if code:
            raise ConnectionError(f"Mooncake reports code {code}")


_ENVIRONMENT = {
    "MC_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "2",
    "MC_TCP_BIND_ADDRESS": "127.0.0.1",  # nothing listens to the network
}
