"""What `zmqpp serve` shows: the stages while they load, then one line an event."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from zmqpp.pipeline.display import StageDisplay
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.state import StageState
from zmqpp.watch.status import Event

__all__ = ["ServeScreen"]

_STYLES = {
    **dict.fromkeys(("ready", "recovered", "restarted", "resumed"), "green"),
    **dict.fromkeys(("lost", "refused"), "red"),
    **dict.fromkeys(("restarting", "draining"), "yellow"),
}


class ServeScreen:
    """The table of stages is live while they load, on a terminal; elsewhere lines. Thread: any.

    Args:
        plans: one a replica.
    """

    def __init__(self, plans: Sequence[PipelinePlan]) -> None:
        self._plans = plans
        self._lock = threading.RLock()
        self._loading: dict[int, list[StageState]] = {}
        self._ready: set[int] = set()
        self._console = Console(highlight=False)
        self._display: StageDisplay | None = None
        self._url = ""

    def __enter__(self) -> ServeScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle()

    def open(self, url: str, log_dir: Path) -> None:
        """Say what is about to be started; `url` is the HTTP entry's."""
        self._url = url
        plan, replicas = self._plans[0], len(self._plans)
        ports = ", ".join(str(stage.bind_port) for plan in self._plans for stage in plan.stages)
        each = f"{replicas} replicas of {plan.total} stages each" if replicas > 1 else f"{plan.total} stages"
        self._say(f"{plan.api.model_name} in {each} on ports {ports}, logs in {log_dir}", "bold")
        self._say(f"HTTP entry on {url}, status page {url}/pipeline")

    def show(self, states: Sequence[StageState], replica: int = 0) -> None:
        """The stages as they are now, beside those of other replicas that load too."""
        with self._lock:
            self._loading[replica] = list(states)
            if self._display is None:
                self._display = StageDisplay(self._console).__enter__()
            loading = [(number, state) for number in sorted(self._loading) for state in self._loading[number]]
            several = len(self._plans) > 1
            names = [f"{number}.{state.index}" if several else str(state.index) for number, state in loading]
            self._display.show([state for _, state in loading], names)

    def tell(self, event: Event) -> None:
        """One event; the table before it stays as it is."""
        with self._lock:
            self._settle()
            self._loading.pop(event.replica, None)
            clock = time.strftime("%H:%M:%S", time.localtime(event.at))
            self._say(f"{clock} {event.kind}: {event.text}", _STYLES.get(event.kind, ""))
            if event.kind == "ready":
                self._ready.add(event.replica)
                self._say_serving()

    def _say_serving(self) -> None:
        """Once all replicas do."""
        if len(self._ready) == len(self._plans):
            names = " or ".join(repr(name) for name in self._plans[0].api.names)
            self._say(f"serving {names} on {self._url}/v1; Ctrl-C stops all stages")

    def say_stopping(self) -> None:
        """A signal asked to stop."""
        with self._lock:
            self._settle()
            print("stopping the stages (Ctrl-C again to force it)", file=sys.stderr, flush=True)

    def _settle(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.__exit__(None, None, None)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)
        self._console.file.flush()
