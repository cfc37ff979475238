"""What `zmqpp serve` shows: the stages while they load, then one line an event."""

from __future__ import annotations

import sys
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
    """The table of stages is live while they load, on a terminal; elsewhere lines. Thread: the main thread."""

    def __init__(self, plan: PipelinePlan) -> None:
        self._plan = plan
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
        plan = self._plan
        ports = ", ".join(str(stage.bind_port) for stage in plan.stages)
        self._say(f"{plan.api.model_name} in {plan.total} stages on ports {ports}, logs in {log_dir}", "bold")
        self._say(f"HTTP entry on {url}, status page {url}/pipeline")

    def show(self, states: Sequence[StageState]) -> None:
        """The stages as they are now."""
        if self._display is None:
            self._display = StageDisplay(self._console).__enter__()
        self._display.show(states)

    def tell(self, event: Event) -> None:
        """One event; the table before it stays as it is."""
        self._settle()
        clock = time.strftime("%H:%M:%S", time.localtime(event.at))
        self._say(f"{clock} {event.kind}: {event.text}", _STYLES.get(event.kind, ""))
        if event.kind == "ready":
            names = " or ".join(repr(name) for name in self._plan.api.names)
            self._say(f"serving {names} on {self._url}/v1; Ctrl-C stops all stages")

    def say_stopping(self) -> None:
        """A signal asked to stop."""
        self._settle()
        print("stopping the stages (Ctrl-C again to force it)", file=sys.stderr, flush=True)

    def _settle(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.__exit__(None, None, None)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)
        self._console.file.flush()
