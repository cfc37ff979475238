"""A piece of a compiled library, as a killed process leaves it, stops one process and not all that come after."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")

from zmqpp.vllm.broken_library import removes_broken_library

pytestmark = pytest.mark.vllm


def _load(library: Path) -> None:
    """As torch does, which puts the loader's words into an error of its own."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(f"ImportError: {error}\n\nSet TORCHDYNAMO_VERBOSE=1 for more") from None


@pytest.mark.parametrize("piece", [b"", b"\x7fELF", bytes(4096)], ids=["empty", "begun", "zeros"])
def test_it_is_removed_by_who_fails_of_it(tmp_path: Path, piece: bytes) -> None:
    library = tmp_path / "kernel.main.so"
    library.write_bytes(piece)
    library.with_suffix(".cpp").touch()
    with pytest.raises(RuntimeError, match=r"kernel\.main\.so"):
        removes_broken_library(_load)(library)
    assert not library.exists()


def test_a_library_of_somebody_else_stays(tmp_path: Path) -> None:
    library = tmp_path / "driver.so"
    library.touch()
    with pytest.raises(RuntimeError):
        removes_broken_library(_load)(library)
    assert library.exists()


def test_a_whole_one_that_cannot_be_loaded_stays(tmp_path: Path) -> None:
    library = tmp_path / "kernel.so"
    library.touch()
    library.with_suffix(".cpp").touch()

    @removes_broken_library
    def fail() -> None:
        raise ImportError(f"{library}: undefined symbol: nothing")

    with pytest.raises(ImportError):
        fail()
    assert library.exists()


COMPILING = """
import torch
from zmqpp.vllm.broken_library import removes_broken_library
compute = torch.compile(lambda x: (x * 3.25 + 1.5).sum(-1))
with torch.inference_mode():
    print(removes_broken_library(compute)(torch.ones(7, 5)).tolist())
"""


def _compile(cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMPILING],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.skipif(not os.environ.get("ZMQPP_LONG"), reason="imports torch three times: ZMQPP_LONG=1")
def test_torch_fails_of_a_piece_and_compiles_what_is_gone(tmp_path: Path) -> None:
    first = _compile(tmp_path)
    assert first.returncode == 0, first.stderr
    (library,) = tmp_path.rglob("*.main.so")
    library.write_bytes(b"")
    failed = _compile(tmp_path)
    assert failed.returncode != 0 and "file too short" in failed.stderr
    again = _compile(tmp_path)
    assert again.stdout == first.stdout, again.stderr
    assert library.stat().st_size
