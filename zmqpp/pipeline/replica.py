"""One of several pipelines of the same model: started, watched and mended on a thread of its own."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zmqpp.errors import LaunchError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.orders import Entrance, Orders
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.relayed_stop import RelayedStop
from zmqpp.pipeline.signals import StopRequested
from zmqpp.pipeline.state import StageState
from zmqpp.pipeline.supervisor import Supervisor
from zmqpp.watch.status import Event

__all__ = ["Care", "Replica"]


@dataclass(frozen=True)
class Care:
    """How each of them is looked after; the calls come from its thread."""

    max_restarts: int
    timeout_s: float
    drain_s: float = 0.0
    grace_s: float = 10.0
    on_poll: Callable[[int, Sequence[StageState]], None] = lambda replica, states: None
    on_event: Callable[[Event], None] = lambda event: None


class Replica:
    """Owns its thread, which owns the processes: it ends with them.

    Args:
        folder: of its own logs.
    Thread: `start` the main one; everything else any.
    """

    def __init__(self, number: int, plan: PipelinePlan, folder: Path, care: Care, entrance: Entrance) -> None:
        self.number, self._care = number, care
        self.was_ready = False
        """Whether it ever was."""
        self.error: Exception | None = None
        """What ended it for good."""
        self.orders = Orders()
        self._stop = RelayedStop()
        self._launcher = Launcher(plan, folder, grace_s=care.grace_s, signals=self._stop)
        self.supervisor = Supervisor(
            self._launcher,
            max_restarts=care.max_restarts,
            timeout_s=care.timeout_s,
            on_poll=lambda: care.on_poll(number, self._launcher.states),
            on_event=self._tell,
            entrance=entrance,
            orders=self.orders,
            drain_s=care.drain_s,
        )
        self._thread = threading.Thread(target=self._run, name=f"zmqpp-replica-{number}")

    def start(self) -> None:
        self._thread.start()

    def stop(self, signum: int) -> None:
        """As if that signal had come, once or again; returns at once."""
        self._stop.request(signum)

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._launcher:
                self.supervisor.run()
        except StopRequested:
            pass
        except LaunchError as error:
            self.error = LaunchError(f"replica {self.number}: {error}")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.error = error

    def _tell(self, event: Event) -> None:
        self.was_ready |= event.kind == "ready"
        text = f"replica {self.number}: {event.text}"
        self._care.on_event(msgspec.structs.replace(event, text=text, replica=self.number))
