"""What links warn of, as lines of a stage's log: vLLM shows only its own loggers."""

from __future__ import annotations

import logging

from zmqpp.pipeline.events import emit


def show_warnings(stage: int | None = None) -> None:
    """From now on to stderr; idempotent, and nothing where the user's own logging takes them already.

    Args:
        stage: whose refused peers the launcher is told of.
    """
    logger = logging.getLogger("zmqpp")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter("zmqpp: warning: %(message)s"))
        logger.addHandler(handler)
        if logger.getEffectiveLevel() > logging.WARNING:
            logger.setLevel(logging.WARNING)  # a library of vLLM 0.30's lets errors through alone
    if stage is not None and not any(isinstance(handler, _Refusals) for handler in logger.handlers):
        logger.addHandler(_Refusals(stage))


class _Refusals(logging.Handler):
    def __init__(self, stage: int) -> None:
        super().__init__(logging.WARNING)
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        address, reason = getattr(record, "refused", (None, ""))
        if address is not None:
            emit(self._stage, "refused", peer=address, why=reason)
