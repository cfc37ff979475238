"""What links warn of reaches a stage's log, whatever was said to Python's loggers before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from zmqpp.vllm.warning_lines import show_warnings


@contextmanager
def handled_by(monkeypatch: pytest.MonkeyPatch, *handlers: logging.Handler) -> Iterator[logging.Logger]:
    """Errors alone are let through, to `handlers`; none is how the libraries of one vLLM leave it."""
    root, logger = logging.getLogger(), logging.getLogger("zmqpp")
    with monkeypatch.context() as patch:  # over before pytest takes its own handlers off
        patch.setattr(root, "handlers", list(handlers))
        patch.setattr(logger, "handlers", [])
        root_level, level = root.level, logger.level
        root.setLevel(logging.ERROR)
        logger.setLevel(logging.NOTSET)
        try:
            yield logger
        finally:
            root.setLevel(root_level)
            logger.setLevel(level)


def test_warnings_are_shown_though_only_errors_were_let_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with handled_by(monkeypatch):
        show_warnings()
        show_warnings()
        logging.getLogger("zmqpp.link").warning("refused a peer")
    assert capsys.readouterr().err == "zmqpp: warning: refused a peer\n"


def test_a_users_own_logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with handled_by(monkeypatch, logging.NullHandler()) as logger:
        show_warnings()
        assert logger.handlers == [] and logger.level == logging.NOTSET
