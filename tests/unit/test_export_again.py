"""`zmqpp export` into a folder that holds an export already: the same, a damaged one, another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import config_of, contents, export, llama_names, qwen, stages, tensors_of, write_model
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.manifest import read_manifest
from zmqpp.errors import ConfigError


def test_the_same_command_again_verifies_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert export(model, out, "--num-stages", "2") == 0
    said = capsys.readouterr().out
    assert "written and verified" in said and f"next: zmqpp serve --pipeline-dir {out}" in said
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    assert export(model, out, "--num-stages", "2") == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"stage {i}: already there, verified" for i in (0, 1)]
    after = {path: path.stat().st_ino for path in out.rglob("*")}
    assert {p: i for p, i in after.items() if p.name != "pipeline.json"} == {
        p: i for p, i in before.items() if p.name != "pipeline.json"
    }


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a tensor": lambda stage: flip_last_byte(next(stage.glob("*.safetensors"))),
    "a short file": lambda stage: (f := next(stage.glob("*.safetensors"))).write_bytes(f.read_bytes()[:-4]),
    "no config": lambda stage: (stage / "config.json").unlink(),
    "another config": lambda stage: (stage / "config.json").write_text("{}"),
    "no checksums": lambda stage: (stage / "zmqpp_checksums.json").unlink(),
    "a link": lambda stage: (
        (stage / "tokenizer.json").unlink(),
        (stage / "tokenizer.json").symlink_to(stage / "tokenizer_config.json"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stage_is_found_and_written_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert export(model, out, "--num-stages", "2") == 0
    whole = contents(out)
    DAMAGES[damage](out / "stage_0")
    capsys.readouterr()
    assert export(model, out, "--num-stages", "2") == 0
    said = capsys.readouterr().out
    assert (
        "stage 0: already there, but differs from the model (" in said
        and "stage 1: already there, verified" in said
    )
    assert contents(out) == whole


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "stopped half-way"])
def test_weights_that_changed_where_no_sample_looks_are_exported_again(
    finished: bool, tmp_path: Path
) -> None:
    shapes = {**llama_names(2, True), "model.embed_tokens.weight": (40_000, 8)}
    model, out = write_model(tmp_path / "m", config_of(2, vocab_size=40_000), shapes), tmp_path / "out"
    assert export(model, out, "--num-stages", "2") == 0
    if not finished:
        (out / "pipeline.json").rename(out / ".zmqpp-export.json")
        (out / "stage_0").rename(out / ".stage_0.partial")
    before = Checkpoint.open(str(model)).fingerprint()
    (file,) = model.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 32] ^= 1
    file.write_bytes(content)
    assert Checkpoint.open(str(model)).fingerprint() == before
    assert export(model, out, "--num-stages", "2") == 0
    (source,), shares = tensors_of([model]), tensors_of(stages(out))
    for share in shares:
        assert all(np.array_equal(share[name], source[name]) for name in share)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--ranges", "0-2,2-6"], r"already holds an export of m with ranges 0-3 3-6, not 0-2 2-6"),
        (["--num-stages", "3"], "with ranges 0-3 3-6, not 0-2 2-4 4-6"),
        (["--num-stages", "2", "--max-shard-size", "1MB"], "in files of 5.0 GB, not 1.0 MB"),
    ],
)
def test_another_split_into_the_same_folder_needs_overwrite(
    change: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert export(model, out, "--num-stages", "2") == 0
    whole = contents(out)
    assert export(model, out, *change) == 2
    said = capsys.readouterr().err
    assert words in said and "--overwrite" in said and said.count("\n") == 1
    assert contents(out) == whole
    assert export(model, out, *change, "--overwrite") == 0
    assert set().union(*tensors_of(stages(out))) == set(llama_names(6, True))
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_another_model_of_the_same_name_and_shapes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, shapes = tmp_path / "out", llama_names(4)
    one = write_model(tmp_path / "a" / "m", config_of(4), shapes, seed=1)
    other = write_model(tmp_path / "b" / "m", config_of(4), shapes, seed=2)
    assert export(one, out, "--num-stages", "2") == 0
    assert export(other, out, "--num-stages", "2") == 2
    assert "already holds an export of another m, not of m" in capsys.readouterr().err


def test_fewer_stages_over_more_leave_none_of_the_old_ones(tmp_path: Path) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert (
        export(model, out, "--num-stages", "3") == export(model, out, "--num-stages", "2", "--overwrite") == 0
    )
    assert [folder.name for folder in stages(out)] == ["stage_0", "stage_1"]


def test_folders_of_others_are_never_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    (out / "stage_7").mkdir(parents=True)
    (out / "stage_7" / "thesis.txt").write_text("three years of work")
    assert export(model, out, "--num-stages", "2") == 2
    assert "stage_7, which is of no export known here" in capsys.readouterr().err
    assert export(model, out, "--num-stages", "2", "--overwrite") == 2
    assert "stage_7 is no exported stage" in capsys.readouterr().err
    assert contents(out) == {"stage_7/thesis.txt": b"three years of work"}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 1}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pipeline.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"pipeline.json cannot be read: .*--overwrite"):
        read_manifest(tmp_path)
    (tmp_path / "pipeline.json").unlink()
    with pytest.raises(ConfigError, match=r"has no pipeline.json: it is no finished export"):
        read_manifest(tmp_path)


def test_an_unreadable_manifest_is_replaced_by_overwrite(tmp_path: Path) -> None:
    model, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert export(model, out, "--num-stages", "2") == 0
    (out / "pipeline.json").write_text("{")
    assert export(model, out, "--num-stages", "2") == 2
    assert export(model, out, "--num-stages", "2", "--overwrite") == 0
    assert read_manifest(out).total_layers == 6
