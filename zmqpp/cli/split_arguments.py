"""Options that say how a model is split, shared by the commands that split one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zmqpp.errors import ConfigError


def add_ranges(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--ranges", nargs="+", metavar="A-B", help=help_text)


def check_balance(balance: str | None, ranges: Sequence[str] | None) -> None:
    """Raises ConfigError where both --balance and --ranges were given."""
    if balance and ranges:
        raise ConfigError("--balance chooses the ranges: leave --ranges out, or --balance")


def split_texts(texts: Sequence[str] | None) -> list[str]:
    """`0-8 8-16` and `0-8,8-16` alike."""
    parts = [part.strip() for text in texts or [] for part in text.split(",")]
    return [part for part in parts if part]


def stage_count(asked: int | None, ranges: Sequence[str], option: str) -> int:
    """How many stages `option` and --ranges ask for.

    Raises:
        ConfigError: neither is given, they contradict each other, or fewer than one stage.
    """
    if asked is None and not ranges:
        raise ConfigError(
            f"give {option} N for an even split, or --ranges A-B C-D ... with one range per stage"
        )
    if asked is not None and asked < 1:
        raise ConfigError(f"{option} {asked}: must be at least 1")
    if asked is not None and ranges and asked != len(ranges):
        raise ConfigError(
            f"{option} {asked} but {len(ranges)} ranges: give one range per stage, or leave {option} out"
        )
    return len(ranges) or int(asked or 0)
