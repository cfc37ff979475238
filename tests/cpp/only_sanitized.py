"""A pytest plugin: no test runs unless the extension is the sanitized one, or the run would prove nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_sessionstart() -> None:
    from zmqpp import _engine

    if not Path(_engine.__file__ or "").is_relative_to(os.environ["ZMQPP_SANITIZED"]):
        raise pytest.UsageError(f"the extension under test is {_engine.__file__}")
