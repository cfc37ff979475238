"""CUDA tensors through Link without a GPU: CPU tensors stand in for them, over a fake driver with late streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as tests/cpp builds it, without CMake."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("the fake driver needs a C++ compiler")
    library = tmp_path_factory.mktemp("fake_cuda") / "libfake_cuda.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread"]
    subprocess.run([compiler, *flags, str(HERE / "fake_driver.cc"), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize("lane", ["tcp", "shm", "cuda_ipc"])
def test_cuda_tensors_keep_their_order_with_the_current_stream(fake_driver: Path, lane: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.exchange", lane],
        cwd=ROOT,
        env={**os.environ, "ZMQPP_CUDA_LIBRARY": str(fake_driver)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")) == ["", f"received by {lane}", f"sent by {lane}"]
