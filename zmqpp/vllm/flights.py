"""The engine's steps on the ring: what each one gives, and which tokens the next ones need of them.

Thread: `take` by whichever reads the ring, everything else on the engine's.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.outputs import DraftTokenIds

from zmqpp import control
from zmqpp.vllm.drafts import drafts_after, open_output
from zmqpp.vllm.feedback import TokenFeedback
from zmqpp.vllm.ring_future import RingFuture
from zmqpp.watch.board import Board

__all__ = ["Flights"]


class Flights:
    """Steps that were sent and did not come back yet.

    Args:
        board: hears of each.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._futures: dict[int, RingFuture] = {}
        self.draft_limits = (0, 0)  # vocabulary, and tokens drafted for a request
        self.feedback: TokenFeedback | None = None
        """Model Runner V2 needs it."""

    def awaited(self, scheduled: Any) -> list[RingFuture]:
        """Those whose tokens `scheduled` (a SchedulerOutput) computes."""
        needed = self.feedback.needed(scheduled) if self.feedback is not None else ()
        futures = (self._futures.get(step) for step in needed)
        return [future for future in futures if future is not None]

    def begin(self, step: int, scheduled: Any, begun_ns: int, future: RingFuture) -> list[control.Sampled]:
        """`scheduled`, taken up at `begun_ns`, goes to the ring as `step` and gives `future`; tokens to go along."""
        tokens = scheduled.total_num_scheduled_tokens
        if tokens:
            self._futures[step] = future
            self._board.send(step, tokens, len(scheduled.num_scheduled_tokens), begun_ns)
        return self.feedback.begin(step, scheduled) if self.feedback is not None else []

    def drafts_of(self, step: int) -> DraftTokenIds | None:
        """What `step`, which is on the ring, computes of drafts; vLLM's scheduler may change it."""
        drafts = self.feedback.drafts_of(step) if self.feedback is not None else {}
        return DraftTokenIds(list(drafts), list(drafts.values())) if drafts else None

    def take(self, reply: control.StepReply) -> None:
        """A step came back.

        Raises:
            MalformedError: as something else.
        """
        future = self._futures.get(reply.step)
        if future is None:
            return  # Given up.
        output = open_output(reply, *self.draft_limits)
        if self.feedback is not None:
            self.feedback.take(reply.step, output, drafts_after(output))
        self._board.finish(reply.step, sum(map(len, output.sampled_token_ids)))
        del self._futures[reply.step]
        future.set_result(output)

    def give_up(self, output: Any) -> None:
        """They are gone: each gives `output`."""
        futures, self._futures = self._futures, {}
        if self.feedback is not None:
            self.feedback.forget()
        for step, future in futures.items():
            self._board.finish(step, 0)
            future.set_result(output)

    def fail(self, error: Exception) -> None:
        """Each raises `error`."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)
        self._futures.clear()
