"""From a log of hundreds of lines, the one that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from zmqpp.pipeline.stage_log import clear_line


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "nothing in its log"),
        ("INFO one\nlast words\n\n", "last words"),
        (
            "usage: vllm serve [options]\nvllm serve: error: unrecognized arguments: --x\n",
            "vllm serve: error: unrecognized arguments: --x",
        ),
        (
            "(EngineCore pid=12) ERROR 11-21 05:40:03 [core.py:11] OSError: no config.json\n"
            "RuntimeError: Engine core initialization failed. See root cause above.\n",
            "OSError: no config.json",
        ),
        (
            "Traceback (most recent call last):\nzmqpp.errors.LayerRangeError: gap: layers 3-4\nbye\n",
            "zmqpp.errors.LayerRangeError: gap: layers 3-4",
        ),
        (
            "zmqpp: error: stage 1: port 5 is in use\nSystemExit: 1\nzmqpp: warning: x\n",
            "stage 1: port 5 is in use",
        ),
        ("\x1b[31mValueError: red\x1b[0m\n", "ValueError: red"),
    ],
)
def test_clear_line(tmp_path: Path, log: str, line: str) -> None:
    path = tmp_path / "stage_0.log"
    path.write_text(log)
    assert clear_line(path) == line


def test_missing_log_is_no_error(tmp_path: Path) -> None:
    assert clear_line(tmp_path / "none.log") == "nothing in its log"
