"""What the GPU's benchmarks make of their figures, and all of their way that a CPU can go."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.test_link_benchmark import LITTLE, run_benchmark
from tests.cli.command import assert_mistake, zmqpp
from zmqpp.bench import overlap
from zmqpp.bench.__main__ import main
from zmqpp.bench.compute import Compute, products_for
from zmqpp.bench.device import CPU, bytes_in_use, parse_device
from zmqpp.bench.link import CUDA_SIZES
from zmqpp.bench.medians import Turn, median_ratio, rows_of
from zmqpp.bench.overlapped import Overlap, overlap_rows, share_hidden
from zmqpp.bench.payload import Mismatch, Payload, check_same
from zmqpp.bench.peers import CUDA_PEERS, PEERS, limit_of, make, peers_for
from zmqpp.bench.peers.device_copies import copy_across, copy_in, copy_out
from zmqpp.bench.peers.nccl import obstacle
from zmqpp.bench.runner import Plan, Runner
from zmqpp.bench.table import figures
from zmqpp.bench.targets import CUDA_TARGETS, LARGE, MEDIUM, SMALL, judge
from zmqpp.errors import ConfigError

CUDA = torch.device("cuda:0")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


# ---- devices ---------------------------------------------------------------------------------------------


@without_gpu
@pytest.mark.parametrize("words", ["link --device cuda", "overlap --device cuda:1"])
def test_without_a_gpu_its_benchmark_is_one_line(words: str) -> None:
    assert_mistake(zmqpp("bench", *words.split()), "no CUDA device here: ")


def said_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which it ends, with the exit code of a mistake."""
    monkeypatch.setattr(sys, "argv", ["zmqpp bench", *words])
    assert main() == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("link --device gpu", "device 'gpu': give cpu, cuda or cuda:N"),
        ("link --device cuda:x", "device 'cuda:x': give cpu, cuda or cuda:N"),
        pytest.param("link --far-device cuda", "no CUDA device here: ", marks=without_gpu),
        ("link --transports memcpy nccl", "nccl is not measured with --device cpu; use zmqpp-shm"),
        ("overlap --transports vllm", "'vllm' is not measured with --device cpu; use zmqpp-shm"),
        ("overlap --rounds 0", "--rounds 0: must be at least 1"),
        ("overlap --seconds nan", "--seconds nan: must lie within 0.01..600"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in said_by(monkeypatch, capsys, *words.split())


def test_cuda_without_a_number_is_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(parse_device(text)) for text in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(ConfigError, match="no CUDA device 2 here: there are 2, counted from 0"):
        parse_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no CUDA device here: torch finds no driver"):
        parse_device("cuda")


def test_cpu_has_no_device_memory_to_count() -> None:
    assert bytes_in_use(CPU) == 0


# ---- who is measured -------------------------------------------------------------------------------------


def test_every_peer_of_a_gpu_is_a_transport_or_a_limit() -> None:
    for name, peer in CUDA_PEERS.items():
        assert (peer.make is None) == (limit_of(name) is not None), name
        if peer.make:
            assert callable(make(name).recv)
    assert peers_for(CUDA) is CUDA_PEERS and peers_for(CPU) is PEERS


@pytest.mark.parametrize(
    ("device", "version", "is_shared", "why"),
    [
        (CUDA, (2, 30, 1), True, ""),
        (CUDA, (2, 27, 5), False, ""),
        (CUDA, (2, 27, 5), True, "two ranks on one GPU need NCCL 2.30, this is 2.27.5"),
        (CUDA, (), False, "this torch was built without NCCL"),
        (CPU, (2, 30, 1), False, "NCCL moves CUDA tensors alone"),
    ],
)
def test_nccl_says_why_it_cannot_be_measured(
    device: torch.device, version: tuple[int, ...], is_shared: bool, why: str
) -> None:
    said = obstacle(device, version, is_shared)
    assert said.startswith(why) and bool(said) == bool(why)


@pytest.mark.parametrize("limit", [copy_out, copy_in, copy_across])
def test_limits_copy_what_they_say(limit: Callable[..., Any]) -> None:
    pair = Payload(LITTLE), Payload(LITTLE)
    pair[0].fill(17)
    stream = limit(pair, 5, CPU)
    assert (stream.dicts, stream.bytes_moved) == (5, 5 * LITTLE.dict_bytes)
    assert stream.wall_s > 0 and stream.checked_bytes == LITTLE.dict_bytes
    check_same(pair[1].fill(99), Payload(LITTLE).fill(99), "still what a nonce makes of it")


def test_tensor_that_came_to_another_device_is_noticed() -> None:
    sent = Payload(LITTLE).tensors
    got = {name: tensor.to("meta") for name, tensor in sent.items()}
    with pytest.raises(Mismatch, match="hidden_states came to meta, wanted was cpu"):
        check_same(got, sent, "here")


@pytest.fixture(scope="module")
def _tracker() -> None:
    """Lives as long as the run; a process of `multiprocessing` starts it."""
    resource_tracker.ensure_running()


@pytest.mark.usefixtures("_tracker")
def test_device_memory_is_a_figure_of_each_transport() -> None:
    """`cpu:0` is not `cpu`: all of a device's way is gone, over a device that has no memory to count."""
    plan = Plan(("zmqpp-shm", "memcpy"), (LITTLE,), rounds=2, trips_s=0.01, stream_s=0.01)
    plan = dataclasses.replace(plan, device=torch.device("cpu", 0), far_device=torch.device("cpu", 0))
    found = Runner(plan, say=lambda _: None).run()
    assert found.missing == {}
    assert [turn.device_bytes for turn in found.turns] == [0, 0, None, None]
    (table,) = figures(rows_of(found.turns), PEERS, {})
    assert [column.header for column in table.columns][-1] == "GPU memory"
    without = [dataclasses.replace(row, device_bytes=None) for row in rows_of(found.turns)]
    (table,) = figures(without, PEERS, {})
    assert [column.header for column in table.columns][-1] == "CPU"


# ---- targets of the link ---------------------------------------------------------------------------------


def turn(index: int, transport: str, gb_per_s: float, device_bytes: int | None = None) -> Turn:
    return Turn(index, transport, LARGE, 0, None, None, 10, gb_per_s, 0.5, device_bytes)


def test_ratio_to_several_is_that_to_the_slowest_of_each_round() -> None:
    turns = [turn(0, "zmqpp-shm", 45), turn(0, "d2h", 50), turn(0, "h2d", 60)]
    turns += [turn(1, "zmqpp-shm", 45), turn(1, "d2h", 100), turn(1, "h2d", 50)]
    assert median_ratio(turns, LARGE, "zmqpp-shm", ("d2h", "h2d"), "gb_per_s") == pytest.approx(0.9)
    alone = [each for each in turns if each.transport != "h2d"]
    assert median_ratio(alone, LARGE, "zmqpp-shm", ("d2h", "h2d"), "gb_per_s") is None


def test_targets_of_a_gpu_are_judged() -> None:
    names = {"zmqpp-shm": 46.0, "d2h": 50.0, "h2d": 60.0, "zmqpp-cuda_ipc": 1800.0, "d2d": 2100.0}
    verdicts = judge([turn(0, name, figure) for name, figure in names.items()], CUDA_TARGETS)
    assert [(verdict.target.text, verdict.word) for verdict in verdicts] == [
        ("zmqpp-shm / slowest of d2h, h2d, 34 MB one way", "met"),
        ("zmqpp-cuda_ipc / d2d, 34 MB one way", "missed"),
        ("zmqpp-cuda_ipc / nccl, 34 MB one way", "not measured"),
    ]
    assert json.loads(json.dumps([verdict.as_json() for verdict in verdicts]))[0]["to"] == ["d2h", "h2d"]
    assert CUDA_SIZES == (SMALL, MEDIUM, LARGE)


def test_row_has_what_its_transport_held_at_most() -> None:
    turns = [turn(0, "nccl", 1, 5), turn(1, "nccl", 2), turn(0, "d2d", 1)]
    assert [row.device_bytes for row in rows_of(turns)] == [5, None]


# ---- overlap ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alone", "transfer", "together", "hidden"),
    [
        (1.0, 0.5, 1.0, 1.0),  # all of it behind the computing
        (1.0, 0.5, 0.9, 1.0),  # no more than all
        (1.0, 0.5, 1.25, 0.5),
        (1.0, 0.5, 1.5, 0.0),  # one after the other
        (1.0, 0.5, 3.0, 0.0),  # worse than that
    ],
)
def test_share_of_a_transfer_that_is_hidden(
    alone: float, transfer: float, together: float, hidden: float
) -> None:
    assert share_hidden(alone, transfer, together) == pytest.approx(hidden)


def test_a_step_computes_twice_as_long_as_its_dict_takes() -> None:
    assert products_for(dict_s=1e-3, product_s=2e-4) == 10
    assert products_for(dict_s=1e-6, product_s=2e-4) == 1
    assert products_for(dict_s=10.0, product_s=2e-4) == 256
    assert products_for(dict_s=1e-3, product_s=0.0) == 256


def test_steps_compute_and_call_once_each() -> None:
    compute, called = Compute(CPU), []
    done = compute.steps(7, 2, called.append)
    assert called == list(range(7)) and len(done.calls_us) == 7
    assert done.device_s > 0 and compute.product_s() > 0


def one(index: int, transport: str, slowed: float = 1.02, isend_us: float = 20.0) -> Overlap:
    return Overlap(index, transport, LARGE, 100, 8, 1.0, slowed, 0.5, 1.05, isend_us, 2 * isend_us, None)


def test_overlap_row_is_the_median_of_its_rounds() -> None:
    (row,) = overlap_rows([one(0, "nccl", 1.0), one(1, "nccl", 9.0), one(2, "nccl", 2.0)])
    assert (row.rounds, row.slowdown, row.isend_p50_us) == (3, 2.0, 20.0)
    assert row.hidden == pytest.approx(0.9)
    assert row.gb_per_s == pytest.approx(100 * LARGE.dict_bytes / 1e9 / 0.5)


def test_overlap_is_judged_for_every_lane_of_ours() -> None:
    rows = overlap_rows([one(0, "zmqpp-shm", 1.04, 31.0), one(0, "zmqpp-tcp", 1.06, 30.0), one(0, "nccl", 9)])
    words = {verdict.target.text: verdict.word for verdict in overlap.judge(rows)}
    assert len(words) == 3 * 2 * 2
    assert words["zmqpp-shm, 34 MB: computing, slowed by"] == "met"
    assert words["zmqpp-shm, 34 MB: us a call of isend, median"] == "missed"
    assert words["zmqpp-tcp, 34 MB: computing, slowed by"] == "missed"
    assert words["zmqpp-tcp, 34 MB: us a call of isend, median"] == "met"
    assert words["zmqpp-cuda_ipc, 1 MB: computing, slowed by"] == "not measured"


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("overlap")
    (folder / "tmp").mkdir()
    words = ("overlap", "--device", "cpu", "--rounds", "1", "--seconds", "0.05", "--transports", "zmqpp-shm")
    done = run_benchmark(folder, *words, "--json", str(folder / "overlap.json"))
    assert done.returncode == 0, done.stderr
    assert list((folder / "tmp").iterdir()) == []
    return json.loads((folder / "overlap.json").read_text()), done


def test_overlap_runs_on_a_cpu_with_every_figure(
    measured: tuple[dict[str, Any], subprocess.CompletedProcess[str]],
) -> None:
    contents, done = measured
    assert [row["label"] for row in contents["table"]] == ["1 MB", "34 MB"]
    for row in contents["table"]:
        assert row["slowdown"] > 0 and 0 <= row["hidden"] <= 1
        assert 0 < row["isend_p50_us"] <= row["isend_p99_us"]
        assert row["device_bytes"] is None
    for each in contents["rounds"]:
        assert each["steps"] >= 6 and each["products"] >= 1
        assert each["together_s"] > 0 and each["transfer_s"] > 0
    assert contents["targets"] == [] and contents["settings"]["device"] == "cpu"
    assert "a dict after every step of computing" in done.stdout and "all equal" in done.stdout


def test_overlap_compares_bytes(
    measured: tuple[dict[str, Any], subprocess.CompletedProcess[str]],
) -> None:
    contents, _ = measured
    assert contents["checked"]["dicts"] >= 2 * 2 * 2  # ends of both kinds of stream, at both sizes


def test_picture_of_a_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"settings": {"device": "cuda:0"}}))
    said = said_by(monkeypatch, capsys, "draw", str(tmp_path / "gpu.json"), str(tmp_path / "gpu.png"))
    assert "gpu.json: a run with --device; only CPU tensors' figures are drawn" in said
