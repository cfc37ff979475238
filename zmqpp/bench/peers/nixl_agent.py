"""How fast is NIXL, NVIDIA's transfer library, between two processes on CPU memory?"""

from __future__ import annotations

import os
import struct
from typing import Any

from zmqpp.bench.payload import Tensors
from zmqpp.bench.peers.slots import SlotRing
from zmqpp.bench.transport import Place, Unavailable

_COUNTS = struct.Struct("!QQ")


class Nixl(SlotRing):
    """An agent a side with the UCX backend; a WRITE whose notification carries the counts.

    Without NIXL's progress threads: each spins on a core, also while nothing moves, and on two cores two of
    them slow a 16 KB round trip down from 42 us to 16 ms. All progress is made inside our calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agent: Any = None
        self._peer: str = ""
        self._slot_memory: Any = None
        self._source_memory: dict[tuple[int, ...], Any] = {}
        self._remote_slots: list[Any] = []
        self._writes: dict[tuple[int, int], Any] = {}
        self._writing: list[Any] = []

    def open(self, place: Place) -> str:
        os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
        os.environ.setdefault("UCX_LOG_LEVEL", "error")
        os.environ.setdefault("UCX_NET_DEVICES", "lo")  # nothing listens to the network
        try:
            from nixl._api import nixl_agent, nixl_agent_config
        except ImportError as error:
            raise Unavailable(f"NIXL does not import: {error}") from None
        self._place = place
        self._agent = nixl_agent(place.name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        return ""

    def close(self) -> None:
        if self._agent is not None:
            self._disconnect()
            self._agent = None

    def settle(self) -> None:
        self._until(lambda: not self._writing)

    def _connect(self) -> None:
        assert self._place is not None
        self._slot_memory = self._agent.register_memory(
            [tensor for slot in self._slots for tensor in slot.values()]
        )
        mine = [
            self._agent.get_serialized_descs(self._agent.get_xfer_descs(list(slot.values())))
            for slot in self._slots
        ]
        metadata, theirs = self._place.swap((self._agent.get_agent_metadata(), mine))
        self._peer = self._agent.add_remote_agent(metadata)
        self._remote_slots = [self._agent.deserialize_descs(slot) for slot in theirs]

    def _disconnect(self) -> None:
        self.settle()
        for handle in self._writes.values():
            self._agent.release_xfer_handle(handle)
        self._writes.clear()
        for memory in (*self._source_memory.values(), self._slot_memory):
            if memory is not None:
                self._agent.deregister_memory(memory)
        self._source_memory.clear()
        self._slot_memory = None
        if self._peer:
            self._agent.remove_remote_agent(self._peer)
            self._peer = ""

    def _write(self, slot: int, tensors: Tensors, sent: int, released: int) -> None:
        handle = self._write_handle(slot, tensors)
        self._until(lambda: handle not in self._writing)
        if self._agent.transfer(handle, _COUNTS.pack(sent, released)) != "DONE":
            self._writing.append(handle)

    def _write_handle(self, slot: int, tensors: Tensors) -> Any:
        """Prepared once for each pair of source and slot."""
        source = tuple(tensor.data_ptr() for tensor in tensors.values())
        key = (source[0], slot)
        if key not in self._writes:
            if source not in self._source_memory and not self._is_slot(source):
                self._source_memory[source] = self._agent.register_memory(list(tensors.values()))
            self._writes[key] = self._agent.initialize_xfer(
                "WRITE",
                self._agent.get_xfer_descs(list(tensors.values())),
                self._remote_slots[slot],
                self._peer,
                _COUNTS.pack(0, 0),
            )
        return self._writes[key]

    def _is_slot(self, source: tuple[int, ...]) -> bool:
        return any(source[0] == next(iter(slot.values())).data_ptr() for slot in self._slots)

    def _tell(self, sent: int, released: int) -> None:
        self._agent.send_notif(self._peer, _COUNTS.pack(sent, released))

    def _poll(self) -> None:
        # A notification leaves when its transfer is found to be done.
        self._writing = [handle for handle in self._writing if not self._is_done(handle)]
        for notices in self._agent.get_new_notifs().values():
            for notice in notices:
                self._note(*_COUNTS.unpack(notice))

    def _is_done(self, handle: Any) -> bool:
        state = self._agent.check_xfer_state(handle)
        if state == "ERR":
            raise ConnectionError("NIXL reports that a transfer failed")
        return bool(state == "DONE")

    def _pause(self, waited_s: float) -> None:
        os.sched_yield()  # it has no threads of its own that would need the core for longer
