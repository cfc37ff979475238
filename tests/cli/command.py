"""`python -m zmqpp …`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def zmqpp(
    *arguments: str, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run to its end; `environment` is set on top of ours."""
    ours = {"PYTHONPATH": str(ROOT), "COLUMNS": "120", **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "zmqpp", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ours},
        timeout=timeout_s,
        check=False,
    )


def assert_mistake(done: subprocess.CompletedProcess[str], words: str, code: int = 2) -> None:
    """One line on stderr, nothing on stdout, and that exit code."""
    assert done.returncode == code, done
    assert words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
