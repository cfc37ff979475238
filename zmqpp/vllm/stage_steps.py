"""The steps of a stage that is ready: computed, sampled on the last one, counted, and answered from there.

Thread: the stage's main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zmqpp import control
from zmqpp.vllm import codec, plain_step
from zmqpp.vllm.place import Place
from zmqpp.vllm.replies import Replies
from zmqpp.vllm.reporter import Reporter

if TYPE_CHECKING:
    from zmqpp.vllm.worker import StageWorker

__all__ = ["StageSteps"]


class StageSteps:
    """From when the stage is ready until it is not.

    Args:
        place: of the stage, which answers there if it is the last one.
        worker: loaded and warm.
        reporter: counts.
    """

    def __init__(self, place: Place, worker: StageWorker, reporter: Reporter) -> None:
        self._worker, self._reporter, self._is_last = worker, reporter, place.is_last
        defers = place.is_last and worker.runner.defers_output
        self._replies = Replies(worker.reply, place.reply, defers=defers)

    def run(self, step: control.Exec) -> None:
        """A forward pass; the last stage samples too, unless the step waits for a grammar mask.

        Raises:
            MalformedError: it cannot run here. PeerLostError: a neighbour is gone. Whatever vLLM raises.
        """
        scheduled = self._worker.check(step.tokens, plain_step.decode(step.payload))
        if not step.tokens:
            self._worker.execute(step, scheduled)
            return
        with self._reporter.recorder.step(step.step, step.tokens, len(scheduled.num_scheduled_tokens)):
            output = self._worker.execute(step, scheduled)
            if self._is_last and output is None and step.sample:
                output = self._worker.sample(None)
            if self._is_last and output is not None:
                self._answer(step.step, output)

    def sample(self, sample: control.Sample) -> None:
        """Under the mask that the step waited for. Raises as `run`."""
        if self._is_last:
            with self._reporter.recorder.sampling(sample.step):
                self._answer(sample.step, self._worker.sample(codec.decode(sample.payload), sample))

    def _answer(self, step: int, output: Any) -> None:
        """At once: the engine waits, and what is counted can be counted later."""
        with self._reporter.recorder.sending():
            self._replies.give(step, output, self._worker.drafts())

    def check(self) -> None:
        """Raises what an answer met that was given before."""
        self._replies.check()

    def close(self) -> None:
        """Answers that are on their way leave, and nothing runs any more."""
        self._replies.close()
