"""What does a reader see at one glance? Latency and throughput of every transport, ours in colour, memcpy as a line."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from zmqpp.bench.payload import Size
from zmqpp.bench.peers import CEILING, PEERS
from zmqpp.errors import ConfigError

NAME = "draw"

_OURS, _OURS_LIGHT = "#0b7285", "#66b9c7"
_OTHERS, _OTHERS_LIGHT = "#868e96", "#c4c9ce"
_LINE, _TEXT = "#c92a2a", "#212529"

Rows = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("json", type=Path, help="what `link --json` wrote")
    parser.add_argument("picture", type=Path, help="FILE.png")


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def run(arguments: argparse.Namespace) -> int:
    contents = json.loads(arguments.json.read_text())
    if contents["settings"].get("device", "cpu") != "cpu":
        raise ConfigError(f"{arguments.json}: a run with --device; only CPU tensors' figures are drawn")
    draw(contents, arguments.picture)
    return 0


def draw(contents: dict[str, Any], path: Path) -> None:
    """Round trips at the two smallest sizes beside one-way throughput at the two largest, up to 34 MB."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    sizes = _sizes(contents)
    small, large = sizes[:2], sizes[-2:] if len(sizes) > 2 else sizes[-1:]
    order = _order(contents, small[0])
    figure = Figure(figsize=(12.5, 1.6 + 0.46 * max(4, len(order))), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _round_trips(left, contents, order, small)
    _throughput(right, contents, order, large)
    left.set_yticks(range(len(order)), [PEERS[name].title for name in order], fontsize=11)
    for label, name in zip(left.get_yticklabels(), order, strict=True):
        label.set_color(_OURS if PEERS[name].is_ours else _TEXT)
        label.set_fontweight("bold" if PEERS[name].is_ours else "normal")
    left.set_ylim(len(order) - 0.4, -0.6)  # the fastest on top
    figure.suptitle(
        "The same dict of two bf16 tensors between two processes on one host", fontsize=14, fontweight="bold"
    )
    figure.supxlabel(_caption(contents), fontsize=8.5, color=_OTHERS)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _round_trips(axes: Any, contents: dict[str, Any], order: list[str], sizes: list[Size]) -> None:
    axes.set_xscale("log")
    for size, is_first in zip(sizes, (True, False), strict=False):
        rows = _rows(contents, size)
        for place, name in enumerate(order):
            if name not in rows:
                continue
            value, colour = rows[name]["rtt_p50_us"], _colour(name, is_first)
            axes.plot(value, place, "o", markersize=9, color=colour, zorder=3)
            axes.annotate(
                _duration(value),
                (value, place),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_TEXT,
            )
    for place, name in enumerate(order):
        ends = [row["rtt_p50_us"] for size in sizes if (row := _rows(contents, size).get(name))]
        axes.plot(ends, [place] * len(ends), "-", linewidth=2, color=_colour(name, False), zorder=2)
    axes.set_title("There and back, median (less is better)", fontsize=11)
    axes.set_xlabel(_shades(sizes) + "; log scale", fontsize=9.5)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(lambda value, _: _duration(value))
    _clean(axes)


def _throughput(axes: Any, contents: dict[str, Any], order: list[str], sizes: list[Size]) -> None:
    height = 0.74 / len(sizes)
    for index, size in enumerate(reversed(sizes)):  # the largest is the dark one
        rows = _rows(contents, size)
        offset = (index - (len(sizes) - 1) / 2) * height
        for place, name in enumerate(order):
            if name in rows:
                value = rows[name]["gb_per_s"]
                axes.barh(place + offset, value, height * 0.92, color=_colour(name, index == 0), zorder=2)
                axes.annotate(
                    f"{value:.1f}",
                    (value, place + offset),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=_TEXT,
                )
        if CEILING in rows:
            value = rows[CEILING]["gb_per_s"]
            axes.axvline(value, color=_LINE, linewidth=1.4, linestyle="-" if index == 0 else ":", zorder=1)
            axes.annotate(
                f"memcpy {size.label}",
                (value, len(order) - 0.45),
                (-4, 3),
                textcoords="offset points",
                fontsize=8.5,
                color=_LINE,
                rotation=90,
                ha="right",
                va="bottom",
            )
    axes.set_title("One way, GB/s (more is better)", fontsize=11)
    axes.set_xlabel(_shades(sizes[::-1]) + "; lines: one thread's memcpy", fontsize=9.5)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.06)
    _clean(axes)


def _shades(sizes: list[Size]) -> str:
    return ", ".join(f"{shade}: {size.label}" for shade, size in zip(("dark", "light"), sizes, strict=False))


def _duration(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _clean(axes: Any) -> None:
    axes.grid(axis="x", color="#e9ecef", zorder=0)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _sizes(contents: dict[str, Any]) -> list[Size]:
    """Those up to 34 MB; larger ones say nothing new."""
    sizes = sorted({Size.parse(row["size"]) for row in contents["table"]}, key=lambda size: size.dict_bytes)
    return [size for size in sizes if size.dict_bytes < 100_000_000] or sizes


def _order(contents: dict[str, Any], size: Size) -> list[str]:
    rows = _rows(contents, size)
    return sorted((name for name in rows if name != CEILING), key=lambda name: rows[name]["rtt_p50_us"])


def _rows(contents: dict[str, Any], size: Size) -> Rows:
    return {row["transport"]: row for row in contents["table"] if row["size"] == str(size)}


def _colour(name: str, is_dark: bool) -> str:
    if PEERS[name].is_ours:
        return _OURS if is_dark else _OURS_LIGHT
    return _OTHERS if is_dark else _OTHERS_LIGHT


def _caption(contents: dict[str, Any]) -> str:
    machine, settings = contents["machine"], contents["settings"]
    return (
        f"{machine['cores']} cores of {machine['cpu']}, Linux; medians of {settings['rounds']} interleaved rounds; "
        f"received bytes compared; zmqpp bench link"
    )
