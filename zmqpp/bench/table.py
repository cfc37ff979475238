"""What does a person read in the terminal? One table of figures, one of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from zmqpp.bench.medians import Row
from zmqpp.bench.payload import Size
from zmqpp.bench.peers import Peer
from zmqpp.bench.targets import Verdict

_WIDTH = 118
"""Where the output is no terminal."""


def console() -> Console:
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=_WIDTH)


def figures(rows: Sequence[Row], peers: Mapping[str, Peer], missing: Mapping[str, str]) -> list[Table]:
    """A table a size, the fastest round trip first; below them who is missing, and why."""
    sizes = sorted({row.size for row in rows}, key=lambda size: size.dict_bytes)
    return [_of_size(size, [row for row in rows if row.size == size], peers, missing) for size in sizes]


def _of_size(size: Size, rows: list[Row], peers: Mapping[str, Peer], missing: Mapping[str, str]) -> Table:
    table = Table(title=f"{size.label}: two bf16 tensors [{size.rows}, {size.columns}]", title_justify="left")
    table.add_column("transport", no_wrap=True)
    for heading in ("round trip p50", "p99", "one way", "CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    on_device = any(row.device_bytes is not None for row in rows)
    if on_device:
        table.add_column("GPU memory", justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row.rtt_p50_us or float("inf")):
        peer = peers[row.transport]
        table.add_row(
            peer.title + (" *" if row.transport in missing else ""),
            duration(row.rtt_p50_us),
            duration(row.rtt_p99_us),
            f"{row.gb_per_s:.2f} GB/s",
            f"{row.cpu_s_per_gb:.3f} s/GB",
            *([memory(row.device_bytes)] if on_device else []),
            style="bold cyan" if peer.is_ours else None,
        )
    return table


def absences(missing: Mapping[str, str], peers: Mapping[str, Peer]) -> list[str]:
    return [f"{peers[name].title}: not available: {why}" for name, why in missing.items()]


def targets(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="Targets (median over the rounds of the ratio within a round)", title_justify="left")
    for heading in ("target", "wanted", "measured", ""):
        table.add_column(heading, justify="left" if heading in ("target", "") else "right", no_wrap=True)
    for verdict in verdicts:
        ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        style = {"met": "green", "missed": "red"}.get(verdict.word)
        table.add_row(verdict.target.text, verdict.target.wanted, ratio, verdict.word, style=style)
    return table


def memory(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"


def duration(microseconds: float | None) -> str:
    if microseconds is None:
        return "-"
    return f"{microseconds:.0f} us" if microseconds < 10_000 else f"{microseconds / 1000:.1f} ms"
