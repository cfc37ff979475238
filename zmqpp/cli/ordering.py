"""What the commands that give an order to a running pipeline share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Which pipeline the order is for."""
    parser.add_argument(
        "--log-dir",
        type=Path,
        default=Path("logs"),
        metavar="DIR",
        help="of `zmqpp serve` (default: %(default)s)",
    )


def give(arguments: argparse.Namespace, order: Mapping[str, Any]) -> int:
    """Give the order and show what comes of it; returns the exit code, or raises as `give_order` does."""
    from zmqpp.pipeline.order_client import give_order

    give_order(arguments.log_dir, order, lambda line: print(line, flush=True))
    return 0
