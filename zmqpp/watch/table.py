"""A pipeline's status as text for a terminal."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zmqpp.units import count, size
from zmqpp.watch.status import Event, PipelineStatus, StageStatus

__all__ = ["drawn"]

_COLOURS = {"ready": "bold green", "lost": "bold red", "failed": "bold red", "stopped": "dim"}
_KINDS = {
    **dict.fromkeys(("ready", "recovered", "restarted", "resumed"), "green"),
    **dict.fromkeys(("lost", "refused", "failed"), "red"),
    "stopped": "dim",
}
_EVENTS = 6
_COLUMNS = (
    ("stage", "right"),
    ("host", "left"),
    ("layers", "left"),
    ("lane", "left"),
    ("tokens/s", "right"),
    ("bytes/s", "right"),
    ("queue", "right"),
    ("step", "right"),
    ("hop", "right"),
    ("state", "left"),
)


def drawn(status: PipelineStatus, trouble: str = "") -> RenderableType:
    """Headline, one row a stage, the last events.

    Args:
        trouble: why this status is an old one; empty when it is fresh.
    """
    parts: list[RenderableType] = [_headline(status)]
    if status.reason and status.state != "ready":
        parts.append(Text(_shown(status.reason), style="red"))
    if status.replicas:
        parts += [Text(), _replicas(status)]
    parts += [Text(), _stages(status)]
    if status.events:
        parts += [Text(), _events(status.events[-_EVENTS:])]
    if trouble:
        parts += [Text(), Text(_shown(trouble), style="bold red")]
    return Group(*parts)


def _headline(status: PipelineStatus) -> Text:
    line = Text(_shown(status.model) or "pipeline", style="bold")
    line.append("  ")
    line.append(_shown(status.state), style=_COLOURS.get(status.state, "yellow"))
    if status.since and status.at:
        line.append(f" for {span(status.at - status.since)}", style="dim")
    if status.draining:
        line.append(", drained", style="yellow")
    line.append(f"  {status.tokens_per_s:.1f} tokens/s", style="not bold")
    line.append(f"  bubble {100 * status.bubble:.1f}%", style="not bold")
    line.append(f"  {status.in_flight} in flight", style="not bold")
    line.append(f"  {count(status.tokens)} tokens", style="not bold")
    return line


def _replicas(status: PipelineStatus) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("replica", "requests", "tokens/s", "bubble"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for one in status.replicas:
        figures = (str(one.replica), str(one.requests), f"{one.tokens_per_s:.1f}", f"{100 * one.bubble:.1f}%")
        state = Text(_shown(one.state), style=_COLOURS.get(one.state, "yellow"))
        if one.draining:
            state.append(", drained", style="yellow")
        table.add_row(*figures, state)
    return table


def _stages(status: PipelineStatus) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, side in _COLUMNS:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for stage in status.stages:
        name = f"{stage.replica}.{stage.stage}" if status.replicas else str(stage.stage)
        table.add_row(name, *map(Text, _figures(stage)), _state(stage, status.at))
    return table


def _figures(stage: StageStatus) -> list[str]:
    recent, layers = stage.recent, stage.layers
    moving = stage.state == "ready"
    return [
        _shown(stage.host) or "-",
        f"{layers.start}-{layers.end}" if layers else "-",
        _shown(stage.link.lane or "-"),
        f"{recent.tokens_per_s:.1f}" if moving else "-",
        f"{size(round(recent.bytes_sent_per_s))}/s" if moving else "-",
        str(stage.queue),
        _millis(recent.step_s if moving else 0.0),
        _millis(recent.hop_s if moving else 0.0),
    ]


def _state(stage: StageStatus, now: float) -> Text:
    text = Text(_shown(stage.state), style=_COLOURS.get(stage.state, "yellow"))
    if stage.state != "ready" and stage.since and now:
        text.append(f" for {span(now - stage.since)}", style="not bold")
    if stage.state != "ready" and stage.reason:
        text.append(f": {_shown(stage.reason)}", style="not bold")
    return text


def _events(events: list[Event]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for event in events:
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        kind = Text(_shown(event.kind), style=_KINDS.get(event.kind, "yellow"))
        table.add_row(at, kind, Text(_shown(event.text)))
    return table


def _shown(text: str) -> str:
    """Names and reasons come over the network: what would steer the terminal is shown as a sign of its own."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _millis(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def span(seconds: float) -> str:
    """`42 s`, `12 min`, `3 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
