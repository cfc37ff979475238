"""Showing the stages come up: a live table on a terminal, one line per change anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from zmqpp.pipeline.state import StageState
from zmqpp.units import count, size

__all__ = ["StageDisplay"]

_COLOURS = {
    "loading": "cyan",
    "loaded": "cyan",
    "ready": "bold green",
    "failed": "bold red",
    "stopped": "dim",
}


class StageDisplay:
    """Call `show` as often as you like; only changes are printed when stdout is no terminal.

    No thread of its own: the launcher forks while this is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._shown: dict[str, str] = {}

    def __enter__(self) -> StageDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, states: Sequence[StageState], names: Sequence[str] = ()) -> None:
        """`names` in place of their numbers, where there are replicas."""
        named = dict(zip(names or [str(state.index) for state in states], states, strict=True))
        if self._live is not None:
            self._live.update(self._table(named), refresh=True)
            return
        for name, state in named.items():
            line = describe(state)
            if self._shown.get(name) != line:
                self._shown[name] = line
                self._console.print(
                    f"stage {name}: {line} ({state.elapsed_s:.1f} s)", soft_wrap=True, highlight=False
                )

    def _table(self, named: Mapping[str, StageState]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("stage", justify="right")
        table.add_column("layers", min_width=9)
        table.add_column("parameters", justify="right")
        table.add_column("size", justify="right", min_width=7)
        table.add_column("lane", min_width=14)
        table.add_column("state", min_width=24, no_wrap=True)
        table.add_column("seconds", justify="right")
        for name, state in named.items():
            table.add_row(
                name,
                state.layers or "-",
                count(state.parameters),
                size(state.size_bytes),
                state.lane or "-",
                self._phase(state),
                f"{state.elapsed_s:.1f}",
            )
        return table

    def _phase(self, state: StageState) -> Text | Table:
        words = f"{phase(state)} {state.progress}".strip()
        text = Text(words, style=_COLOURS.get(state.phase, "yellow"))
        if state.settled_s is not None:
            return text
        spinning = Table.grid(padding=(0, 1, 0, 0))
        spinning.add_row(self._spinner, text)
        return spinning


def describe(state: StageState) -> str:
    """One stage in one line, without its number."""
    parts = [phase(state)]
    if state.layers:
        parts.append(f"layers {state.layers}")
    if state.parameters is not None:
        parts.append(f"{count(state.parameters)} parameters, {size(state.size_bytes)}")
    if state.lane:
        parts.append(f"tensors by {state.lane}")
    return ", ".join(parts)


def phase(state: StageState) -> str:
    if state.phase == "waiting" and state.waiting_for:
        return f"waiting for {state.waiting_for}"
    return state.phase
