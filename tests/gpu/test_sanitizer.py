"""The kernels touch no memory but theirs and race for none: tests/gpu/kernels.py under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.device import DEVICE, require
from zmqpp import _engine

require(cpu_will_do=False)
pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("kernels.py")

if not hasattr(_engine, "pack_on_device"):
    pytest.skip("this build has no kernels of its own", allow_module_level=True)
if why := _engine.why_no_kernels():
    pytest.skip(f"this build has no kernels: {why}", allow_module_level=True)


def run(*before: str) -> subprocess.CompletedProcess[str]:
    ours = {"PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(
        [*before, sys.executable, str(SCRIPT), str(DEVICE)],
        capture_output=True,
        text=True,
        env={**os.environ, **ours},
        timeout=580,
        check=False,
    )


def test_kernels_make_what_the_cpu_makes() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as on the CPU" in done.stdout


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=str(Path(os.environ.get("CUDA_HOME", "")) / "bin")
    )
    if sanitizer is None:
        pytest.skip("no compute-sanitizer on the PATH or in CUDA_HOME/bin; it comes with the CUDA toolkit")
    # What CUDA's own calls return is none of its business: torch asks some only to see whether they fail.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    done = run(sanitizer, "--tool", tool, "--error-exitcode", "9", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as on the CPU" in done.stdout
