"""What links warn of, as lines of a stage's log: vLLM shows only its own loggers."""

from __future__ import annotations

import logging


def show_warnings() -> None:
    """From now on to stderr; idempotent, and nothing where the user's own logging takes them already."""
    logger = logging.getLogger("zmqpp")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter("zmqpp: warning: %(message)s"))
        logger.addHandler(handler)
