"""The committed inputs of the fuzz targets; tests/cpp/test_cpp.py gives them to the targets."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.make_corpus import CORPUS, make

TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.cc"))


def test_inputs_are_the_messages_of_today(tmp_path: Path) -> None:
    make(tmp_path)
    assert _files(tmp_path, "*") == _files(CORPUS, "real-*"), "python -m tests.fuzz.make_corpus"


def test_every_target_has_a_small_corpus() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == TARGETS
    for target in TARGETS:
        files = list((CORPUS / target).iterdir())
        assert 0 < len(files) <= 40
        assert max(file.stat().st_size for file in files) <= 4096


def _files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(f"*/{pattern}"))}
