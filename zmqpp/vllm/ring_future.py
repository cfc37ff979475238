"""What the engine waits for on its ring: a step's output, or the answers of several stages to one call."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.errors import DeadlineError, MalformedError, RemoteError, StageError
from zmqpp.vllm import codec

if TYPE_CHECKING:
    from zmqpp.vllm.ring import EngineRing


class StageLost(StageError):
    """A stage is gone, and the pipeline will go on without what was on the ring. Never leaves the engine's thread."""


class LostMeanwhile(RemoteError):
    """A stage was lost before all had answered a call; it is back."""


class RingTimeout(StageError, DeadlineError):
    """Not all stages answered the hello in time."""


class RingFuture(Future[Any]):
    """A future whose `result()` reads the ring itself: no thread hands the reply over."""

    def __init__(self, ring: EngineRing) -> None:
        super().__init__()
        self._ring = ring

    def result(self, timeout: float | None = None) -> Any:
        """The reply; raises what the stage raised, or StageError when a stage is lost for good."""
        if not self.done():
            try:
                self._ring.read_until(self, timeout)
            except StageLost:
                if self._ring.recover is None or self._ring.recovering:
                    raise
                self._ring.recover()  # Which gives up this one too.
        return super().result(0)


class RingCall:
    """One rpc: results of the stages that were asked, in stage order, and of their workers in the order of ranks."""

    def __init__(self, method: str, asked: Sequence[int], future: RingFuture) -> None:
        self.method, self.future = method, future
        self.replies: dict[int, control.RpcReply | None] = dict.fromkeys(asked)

    def add(self, reply: control.RpcReply) -> bool:
        """Keep one reply; True once all are there and the future is resolved."""
        if reply.stage not in self.replies:
            return False
        self.replies[reply.stage] = reply
        replies = [r for r in self.replies.values() if r is not None]
        if len(replies) < len(self.replies):
            return False
        failed = next((r for r in replies if r.error is not None), None)
        if failed is not None:
            self.future.set_exception(
                RemoteError(f"stage {failed.stage}: {self.method} failed: {failed.error}")
            )
        else:
            self.future.set_result([result for r in replies for result in _results(r)])
        return True


def _results(reply: control.RpcReply) -> list[Any]:
    results = codec.decode(reply.payload or b"")
    if type(results) is not list:
        raise MalformedError(f"stage {reply.stage}'s answer is no list of results")
    return results
