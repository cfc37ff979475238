"""How fast is the shared-memory queue of vLLM's multiprocess executor?"""

from __future__ import annotations

import gc
import os
from typing import Any

from zmqpp.bench.payload import Tensors
from zmqpp.bench.transport import WAIT_S, Blocking, Place, Unavailable


class VllmQueue(Blocking):
    """Two queues with one local reader each, made as the executor and its worker make theirs.

    The executor's queue to its workers has VLLM_MQ_MAX_CHUNK_BYTES_MB a slot, the worker's queue back the
    default; what is larger goes through the queue's own ZeroMQ socket. A reader spins for a second after each
    dict, inside `dequeue` only.
    Source: v1/executor/multiproc_executor.py (MultiprocExecutor, WorkerProc._init_message_queues).

    Args:
        arena: turn on vLLM's zero-copy arena for tensors of 8 MB and more, which is experimental and off by default.
    """

    def __init__(self, arena: bool) -> None:
        self._arena = arena
        self._outgoing: Any = None
        self._incoming: Any = None

    def open(self, place: Place) -> str:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_RPC_BASE_PATH"] = str(place.folder)  # its sockets go where they are cleaned up
        try:
            import vllm.envs as envs
            from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
        except ImportError as error:
            raise Unavailable(f"vLLM does not import: {error}") from None
        options: dict[str, Any] = {"enable_shm_tensor_arena": True} if self._arena else {}
        if not place.far:
            options["max_chunk_bytes"] = envs.VLLM_MQ_MAX_CHUNK_BYTES_MB << 20
        try:
            self._outgoing = MessageQueue(1, 1, **options)
        except (TypeError, RuntimeError, OSError) as error:  # an older vLLM; a small /dev/shm
            raise Unavailable(f"MessageQueue: {error}") from None
        theirs = place.swap(self._outgoing.export_handle())
        self._incoming = MessageQueue.create_from_handle(theirs, 0)
        # Collective: a writer and its reader must call it at the same time.
        first, second = (self._incoming, self._outgoing) if place.far else (self._outgoing, self._incoming)
        first.wait_until_ready()
        second.wait_until_ready()
        return ""

    def send(self, tensors: Tensors) -> None:
        self._outgoing.enqueue(tensors, timeout=WAIT_S)

    def recv(self) -> Tensors:
        got: Tensors = self._incoming.dequeue(timeout=WAIT_S)
        return got

    def close(self) -> None:
        self._outgoing = self._incoming = None
        gc.collect()  # its segments are unlinked when it is collected
