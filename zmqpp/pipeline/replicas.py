"""Several pipelines of the same model on this machine, side by side; what one loses does not touch the others.

with Replicas(plans, log_dir, care, entrances) as replicas:
    replicas.run()          # until a signal, an order, or the end of all of them
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from zmqpp.pipeline.log_folder import own_log_dir
from zmqpp.pipeline.orders import Entrance
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.replica import Care, Replica
from zmqpp.pipeline.signals import StopRequested, StopSignals

__all__ = ["Replicas"]

_POLL_S = 0.1


class Replicas:
    """Owns: all processes of all of them, and their threads, while `run` lasts. Thread: the main thread.

    One that fails before all were ready once ends all: they are alike, and so is the mistake. Later the others go on
    without it, and the last one to fail ends all.

    Args:
        plans: of each, with ports of its own.
        log_dir: gets a folder for each.
        entrances: where the requests of each come in.
        on_interrupt: called when a signal asks to stop.
    """

    def __init__(
        self,
        plans: Sequence[PipelinePlan],
        log_dir: Path,
        care: Care,
        entrances: Sequence[Entrance],
        on_interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self._log_dir, self._on_interrupt = log_dir, on_interrupt
        self._signals, self._resources = StopSignals(), ExitStack()
        self.all = [
            Replica(number, plan, log_dir / f"replica_{number}", care, entrance)
            for number, (plan, entrance) in enumerate(zip(plans, entrances, strict=True))
        ]

    def __enter__(self) -> Replicas:
        with ExitStack() as entering:
            entering.enter_context(own_log_dir(self._log_dir))
            entering.enter_context(self._signals)
            self._resources = entering.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def run(self) -> None:
        """Start them and keep them running; returns when an order has ended them.

        Raises:
            LaunchError: one did not become ready the first time, or all have failed.
            StopRequested: a signal asked to stop.
        """
        started: list[Replica] = []
        try:
            for replica in self.all:
                with self._signals.held():
                    replica.start()
                    started.append(replica)
            while any(replica.runs for replica in self.all):
                self._check_start()
                self._signals.pause(_POLL_S)
        except BaseException as error:
            self._end(started, error)
            raise
        self._check_start()
        errors = [replica.error for replica in self.all if replica.error is not None]
        if len(errors) == len(self.all):
            raise errors[-1]

    def _check_start(self) -> None:
        """Raises LaunchError when one failed before all were ready."""
        if all(replica.was_ready for replica in self.all):
            return
        for replica in self.all:
            if replica.error is not None:
                raise replica.error

    def _end(self, started: Sequence[Replica], error: BaseException) -> None:
        """All of them, in good order; each further signal is passed on."""
        if isinstance(error, StopRequested):
            self._on_interrupt()
        signum = error.signum if isinstance(error, StopRequested) else signal.SIGTERM
        self._signals.mute()
        passed_on = self._signals.count
        for replica in started:
            replica.stop(signum)
        while any(replica.runs for replica in started):
            if self._signals.count > passed_on:
                passed_on = self._signals.count
                for replica in started:
                    replica.stop(signum)
            self._signals.pause(_POLL_S)
