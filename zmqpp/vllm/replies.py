"""What the last stage answers steps with; outputs that are on their way to the host are waited for beside the runner.

Thread: one of its own, for those; everything else on the stage's main thread.
Source: MultiprocExecutor's async output thread (vllm/v1/executor/multiproc_executor.py).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from zmqpp import control
from zmqpp.errors import DeadlineError, PeerLostError
from zmqpp.vllm.timeouts import step_s

__all__ = ["Replies"]


class Replies:
    """Sends outputs in the order in which they were given.

    Args:
        make: from a step and what was given for it to the reply; waits for the device.
        send: to the engine; called on either thread.
        defers: outputs are waited for on a thread of their own.
    """

    def __init__(
        self, make: Callable[..., control.StepReply], send: Callable[[Any], None], *, defers: bool
    ) -> None:
        self._make, self._send = make, send
        self._failure: BaseException | None = None
        self._given: queue.Queue[tuple[Any, ...] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if defers:
            self._thread = threading.Thread(target=self._run, name="zmqpp-replies", daemon=True)
            self._thread.start()

    def give(self, step: int, *given: Any) -> None:
        """Reply to `step`. Raises what an earlier reply met, or without a thread what this one does."""
        self.check()
        if self._thread is None:
            self._send(self._make(step, *given))
        else:
            self._given.put((step, *given))

    def check(self) -> None:
        """Raises what a reply met."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Returns when all that was given is sent, or cannot be; nothing more is to be given.

        Raises:
            DeadlineError: the device was not done in a step's time.
        """
        if self._thread is not None:
            self._given.put(None)
            self._thread.join(step_s())
            if self._thread.is_alive():
                raise DeadlineError(f"what the last stage sampled did not leave in {step_s():.0f} s")

    def _run(self) -> None:
        while (given := self._given.get()) is not None:
            try:
                if self._failure is None:
                    self._send(self._make(*given))
            except PeerLostError:
                pass  # The main thread hears of it where it reads.
            except BaseException as error:
                self._failure = error
