"""An export that is killed, stopped, starved of space or lied to by the disk leaves nothing that looks whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import qwen
from tests.fault import export_child
from zmqpp.checkpoint import copying, output
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.durable import write_file
from zmqpp.checkpoint.export import Export
from zmqpp.checkpoint.manifest import read_manifest
from zmqpp.cli import main
from zmqpp.errors import ChecksumError, ConfigError, ResourceError
from zmqpp.layers import even_ranges

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CHILD = [sys.executable, str(Path(export_child.__file__))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return qwen(tmp_path / "m", layers=4, tied=True, shards=2)


def child(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=ENVIRONMENT,
    )


def export(model: Path, out: Path, stages: int = 2) -> Export:
    checkpoint = Checkpoint.open(str(model))
    return Export(checkpoint, even_ranges(checkpoint.total_layers, stages), out, 2000)


def looks_whole(out: Path) -> bool:
    return (out / "pipeline.json").exists()


@pytest.mark.parametrize("old", ["", "0-1,1-4"], ids=["into nothing", "over another export"])
def test_an_export_killed_before_any_of_its_steps_leaves_nothing_that_looks_whole_and_goes_on(
    model: Path, old: str
) -> None:
    # In memory: a busy disk takes a minute for what is a matter of seconds.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        command = [
            sys.executable,
            "-m",
            "tests.fault.export_sweep",
            str(model),
            f"{folder}/out",
            "0-2,2-4",
            old,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=250, check=False, env=ENVIRONMENT, cwd=ROOT
        )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) > 40 and [kill["killed"] for kill in kills] == [True] * (len(kills) - 1) + [False]
    for kill in kills:
        assert kill["half a stage"] == [], kill
        assert kill["is whole"] or not kill["says whole"], kill
        assert kill["again"] == 0 and kill["same"], kill


def test_finished_shards_are_not_written_again(model: Path, tmp_path: Path) -> None:
    whole = child(model, tmp_path / "whole", "0-2,2-4", "kill", 0)
    steps = int(whole.stdout.split()[-1])
    assert child(model, tmp_path / "out", "0-2,2-4", "kill", steps - 12).returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "stage_0").exists() and not looks_whole(tmp_path / "out")
    files = {path: path.stat().st_ino for path in tmp_path.glob("out/**/*.safetensors")}
    kept = [path.name for path in files if ".stage_1.partial" in str(path)]
    assert kept
    again = child(model, tmp_path / "out", "0-2,2-4", "kill", 0)
    assert "stage 0: already there, verified" in again.stdout
    assert f"({len(kept)} of them already there)" in again.stdout
    assert int(again.stdout.split()[-1]) < steps
    now = {path.name: path.stat().st_ino for path in (tmp_path / "out" / "stage_1").glob("*.safetensors")}
    assert {name: now[name] for name in kept} == {
        p.name: files[p] for p in files if p.name in kept and "_1" in str(p)
    }


def test_a_shard_that_rotted_since_the_kill_is_written_again(model: Path, tmp_path: Path) -> None:
    assert child(model, tmp_path / "out", "0-2,2-4", "kill", 40).returncode == -signal.SIGKILL
    shard = min((tmp_path / "out").glob(".stage_*.partial/*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert child(model, tmp_path / "out", "0-2,2-4", "kill", 0).returncode == 0
    first = tmp_path / "out" / "stage_0" / "model-00001-of-00002.safetensors"
    stages = [tmp_path / "out" / f"stage_{i}" / shard.name for i in (0, 1)]
    assert first.exists() and any(path.exists() and path.read_bytes() != bytes(content) for path in stages)
    assert export(model, tmp_path / "out").run().folders == ["stage_0", "stage_1"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_export_says_one_line_and_goes_on(model: Path, tmp_path: Path, signum: int) -> None:
    command = [*CHILD, str(model), str(tmp_path / "out"), "0-2,2-4", "wait", "30"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert running.stdout is not None and running.stdout.readline() == "waiting\n"
    running.send_signal(signum)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signum
    name = signal.Signals(signum).name
    assert errors == f"zmqpp: export stopped by {name}; the same command goes on from here\n"
    assert not looks_whole(tmp_path / "out")
    assert child(model, tmp_path / "out", "0-2,2-4", "kill", 0).returncode == 0
    assert looks_whole(tmp_path / "out")


def test_two_exports_into_one_folder_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with output.opened(out):
        assert main(["export", "--model", str(model), "--num-stages", "2", "--output-dir", str(out)]) == 2
        assert "another zmqpp export is writing into" in capsys.readouterr().err
    assert main(["export", "--model", str(model), "--num-stages", "2", "--output-dir", str(out)]) == 0


def test_a_limit_on_the_size_of_files_is_one_line_and_leaves_nothing_that_looks_whole(
    model: Path, tmp_path: Path
) -> None:
    limited = child(model, tmp_path / "out", "0-2,2-4", "limit", 1500)
    assert limited.returncode == 1
    assert limited.stderr.count("\n") == 1 and "no space is left in" in limited.stderr
    assert not looks_whole(tmp_path / "out") and not list((tmp_path / "out").rglob("*.part"))
    assert child(model, tmp_path / "out", "0-2,2-4", "kill", 0).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_too_little_space_is_noticed_before_anything_is_copied(tmp_path: Path, small_disk: Path) -> None:
    model = qwen(tmp_path / "m", layers=60)
    with pytest.raises(ResourceError, match=r"needs \d+\.\d KB more in .*, \d+\.\d KB are free there"):
        export(model, small_disk / "out").run()
    assert not (small_disk / "out").exists()
    # What came to nothing does not stand in the way of another command.
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert export(qwen(tmp_path / "smaller", layers=2), small_disk / "out").run().total_layers == 2


def test_an_export_that_does_not_fit_leaves_the_one_it_was_to_replace(
    model: Path, tmp_path: Path, small_disk: Path
) -> None:
    out = small_disk / "out"
    subprocess.run(["mount", "-o", "remount,size=100k", str(small_disk)], check=True)
    export(model, out).run()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    larger = export(qwen(tmp_path / "larger", layers=60), out)
    larger.overwrite = True
    with pytest.raises(ResourceError, match="are free there"):
        larger.run()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # What is replaced counts as free: the disk need not hold both.
    similar = export(qwen(tmp_path / "similar", layers=4, rope_theta=1), out)
    similar.overwrite = True
    assert similar.run() == read_manifest(out)


def test_a_disk_that_fills_up_half_way_is_one_line_and_the_export_goes_on_once_there_is_space(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "zmqpp.checkpoint.export.check_space", lambda *_: None
        )  # someone else took it meanwhile
        with pytest.raises(
            ResourceError, match=r"no space is left in .*No space left on device.*goes on from here"
        ):
            export(model, small_disk / "out").run()
    assert not looks_whole(small_disk / "out") and not list((small_disk / "out").rglob("*.safetensors.part"))
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert export(model, small_disk / "out").run() == read_manifest(small_disk / "out")


def test_a_read_only_disk_is_one_line(
    model: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out in (small_disk, small_disk / "new"):
        assert main(["export", "--model", str(model), "--num-stages", "2", "--output-dir", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "ead-only" in said


def test_a_place_where_no_folder_can_be_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        assert main(["export", "--model", str(model), "--num-stages", "2", "--output-dir", str(out)]) == 2
        said = capsys.readouterr().err
        assert "cannot be made or opened" in said and said.count("\n") == 1


def test_a_disk_that_returns_other_bytes_is_noticed_by_tensor(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def lying(target: object, piece: memoryview) -> None:
        written.append(len(piece))
        honest(target, memoryview(bytes(piece[:-1]) + b"\x7f") if len(written) == 2 else piece)

    honest = copying._write_all
    monkeypatch.setattr(copying, "_write_all", lying)
    with pytest.raises(
        ChecksumError, match=r"model-00001-of-\d+.safetensors: model\.\S+ reads back otherwise"
    ):
        export(model, tmp_path / "out").run()
    assert not looks_whole(tmp_path / "out") and not list(tmp_path.glob("out/**/*.safetensors*"))


def test_a_source_that_shrinks_meanwhile_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = export(model, tmp_path / "out")
    for path in model.glob("*.safetensors"):
        os.truncate(path, 1000)
    with pytest.raises(ConfigError, match="became shorter while .* was read from it; start again"):
        running.run()
    assert not looks_whole(tmp_path / "out")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_another_failure_of_the_disk_names_the_place(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def broken(path: Path, content: bytes) -> None:
        if path.name == "config.json":
            raise OSError(code, os.strerror(code), str(path))
        write_file(path, content)

    monkeypatch.setattr("zmqpp.checkpoint.stage_folder.write_file", broken)
    with pytest.raises(ResourceError, match=rf"failed: .*config.json {os.strerror(code)}"):
        export(model, tmp_path / "out").run()


def test_memory_stays_bounded_whatever_the_model_takes(tmp_path: Path) -> None:
    """320 MB of tensors, 80 MB the largest, through a few MB of buffers."""
    model, size_bytes, header = tmp_path / "big", 80_000_000, {}
    model.mkdir()
    for layer in range(4):
        offsets = [layer * size_bytes, (layer + 1) * size_bytes]
        header[f"model.layers.{layer}.w"] = {
            "dtype": "BF16",
            "shape": [size_bytes // 2],
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 4 * size_bytes)
    (model / "config.json").write_text('{"num_hidden_layers": 4}')
    try:
        done = child(model, tmp_path / "out", "0-2,2-4", "memory")
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 40_000_000
        assert sum(path.stat().st_size for path in tmp_path.glob("out/*/*.safetensors")) > 320_000_000
    finally:
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()


def test_on_a_terminal_a_bar_is_shown_and_the_lines_stay(model: Path, tmp_path: Path) -> None:
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "zmqpp", "export", "--model", str(model), "--num-stages", "2"]
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")],
        stdout=terminal,
        stderr=terminal,
        env=environment,
        check=False,
    )
    os.close(terminal)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.returncode == 0 and "copy and verify" in shown
    assert "stage 1: layers 2-4" in shown and "next: zmqpp serve --pipeline-dir" in shown
