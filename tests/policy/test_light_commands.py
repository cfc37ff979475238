"""Commands start fast, and the doctor works where nothing is installed: heavy imports wait until they are needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "vllm", "transformers", "zmq", "numpy", "msgspec", "httpx", "rich", "starlette", "uvicorn")
_LOADED = """
import sys
from zmqpp.cli import main
try:
    main(sys.argv[2:])
except SystemExit:
    pass
print("LOADED", [name for name in sys.argv[1].split() if name in sys.modules])
"""


@pytest.mark.parametrize(
    "words",
    ["--help", "doctor --help", "stage --all --print --model m --hosts a,b", "bench", "check /no/folder"],
)
def test_a_command_that_starts_nothing_imports_nothing_heavy(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, " ".join(HEAVY), *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=True,
    )
    loaded = done.stdout.splitlines()[-1]
    # httpx and rich are looked for before a check begins, so that their lack is one line.
    allowed = ("['httpx', 'rich']", "[]") if words.startswith("check") else ("[]",)
    assert loaded.removeprefix("LOADED ") in allowed, loaded


@pytest.mark.parametrize("folder", ["cli", "pipeline", "doctor"])
def test_no_torch_and_no_vllm_where_processes_are_planned_and_watched(folder: str) -> None:
    for path in sorted((ROOT / "zmqpp" / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "vllm"}, path.name
