"""CUDA tensors through Link without a GPU: CPU tensors stand in for them, over a fake driver with late streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zmqpp import _engine

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
    flags += ["-I", str(ROOT / "csrc")]
    subprocess.run([compiler, *flags, str(HERE / "fake_driver.cc"), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize(
    ("lane", "compression"), [("tcp", "none"), ("shm", "fp8"), ("cuda_ipc", "none"), ("cuda_ipc", "fp8")]
)
def test_cuda_tensors_keep_their_order_with_the_current_stream(
    fake_driver: Path, lane: str, compression: str
) -> None:
    if compression != "none" and _engine.why_no_kernels():
        pytest.skip(f"kernels are not in this build: {_engine.why_no_kernels()}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.exchange", lane, compression],
        cwd=ROOT,
        env={**os.environ, "ZMQPP_CUDA_LIBRARY": str(fake_driver)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")) == ["", f"received by {lane}", f"sent by {lane}"]


def test_handles_keep_their_promises(fake_driver: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.handles"],
        cwd=ROOT,
        env={**os.environ, "ZMQPP_CUDA_LIBRARY": str(fake_driver), "FAKE_CUDA_PINNABLE_MIB": "96"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), f"{done.stdout}\n{done.stderr[-3000:]}"
