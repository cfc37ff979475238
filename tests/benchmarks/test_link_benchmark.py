"""The link benchmark measures what it says: bytes are compared, failures become rows, figures become medians."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zmqpp.bench.channel import Channel
from zmqpp.bench.medians import Turn, median_ratio, percentile, rows_of
from zmqpp.bench.payload import Mismatch, Payload, Size, Tensors, check_same
from zmqpp.bench.targets import SMALL, TARGETS, Verdict, judge
from zmqpp.bench.transport import Blocking
from zmqpp.bench.turn import CHECKS, far_stream, near_stream, near_trips, warm_trips

ROOT = Path(__file__).resolve().parents[2]
LITTLE = Size(2, 64)


# ---- the whole of it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick run of a few transports, one of which is broken."""
    folder = tmp_path_factory.mktemp("link")
    (folder / "nixl").mkdir()
    (folder / "nixl" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    (folder / "tmp").mkdir()
    done = run_benchmark(
        folder,
        *("link", "--quick", "--sizes", "1x4096", "--json", str(folder / "link.json")),
        *("--transports", "zmqpp-tcp", "zmqpp-ipc", "socket", "pyzmq-ipc", "nixl", "memcpy"),
    )
    assert done.returncode == 0, done.stderr
    assert list((folder / "tmp").iterdir()) == []
    contents: dict[str, Any] = json.loads((folder / "link.json").read_text())
    return {**contents, "printed": done.stdout}


def run_benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TMPDIR": str(folder / "tmp")}
    return subprocess.run(
        [sys.executable, "-m", "zmqpp.bench", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_report_has_machine_settings_and_every_round(report: dict[str, Any]) -> None:
    assert {"cpu", "cores", "kernel", "versions", "libzmq"} <= set(report["machine"])
    assert report["machine"]["versions"]["torch"]
    assert report["settings"]["sizes"] == ["1x4096"]
    measured = {"zmqpp-tcp", "zmqpp-ipc", "socket", "pyzmq-ipc", "memcpy"}
    for index in range(report["settings"]["rounds"]):
        assert {row["transport"] for row in report["rounds"] if row["round"] == index} == measured
    assert {row["transport"] for row in report["table"]} == measured


def test_report_has_a_figure_for_every_measure(report: dict[str, Any]) -> None:
    for row in report["table"]:
        assert row["dict_bytes"] == 16384 and row["label"] == "16 KB"
        assert row["gb_per_s"] > 0 and row["cpu_s_per_gb"] > 0
        if row["transport"] == "memcpy":
            assert row["rtt_p50_us"] is None and row["rtt_p99_us"] is None
        else:
            assert 0 < row["rtt_p50_us"] <= row["rtt_p99_us"]


def test_report_counts_compared_bytes(report: dict[str, Any]) -> None:
    two_way = 4 * report["settings"]["rounds"]  # transports times rounds
    assert report["checked"]["dicts"] >= two_way * (CHECKS + 2)  # fresh round trips, both ends of a stream
    assert report["checked"]["bytes"] == 16384 * report["checked"]["dicts"]


def test_transport_that_fails_is_a_row_with_the_reason(report: dict[str, Any]) -> None:
    nixl = report["transports"]["nixl"]
    assert not nixl["available"] and "broken on purpose" in nixl["why"]
    assert "NIXL (UCX): not available: NIXL does not import: broken on purpose" in report["printed"]
    assert all(report["transports"][name]["available"] for name in report["transports"] if name != "nixl")


def test_report_judges_every_target(report: dict[str, Any]) -> None:
    verdicts = {each["target"]: each["verdict"] for each in report["targets"]}
    assert len(verdicts) == len(TARGETS)
    assert verdicts["zmqpp-tcp / socket, 16 KB round trip"] in ("met", "missed")
    assert verdicts["zmqpp-shm / vllm, 1 MB one way"] == "not measured"


def test_picture_is_drawn_from_a_report(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench extra is not installed")
    from zmqpp.bench.plot import draw

    draw(report, tmp_path / "link.png")
    assert (tmp_path / "link.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", ["64", "x4096", "0x4096", "1x1", "64xfour"])
def test_wrong_size_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=size):
        Size.parse(size)


# ---- what is compared ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hidden_states", "residual"])
@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_corrupted_byte_is_noticed(name: str, place: int) -> None:
    sent = Payload(LITTLE).tensors
    got = {key: tensor.clone() for key, tensor in sent.items()}
    assert check_same(got, sent, "here") == LITTLE.dict_bytes
    flat = got[name].view(-1).view(torch.uint8)
    flat[place] ^= 1
    with pytest.raises(Mismatch, match=f"here: {name} differs at byte {place % len(flat)}"):
        check_same(got, sent, "here")


def test_corrupted_byte_is_noticed_in_unaligned_memory() -> None:
    sent = Payload(LITTLE).tensors
    got = {}
    for key, tensor in sent.items():
        memory = torch.zeros(tensor.nbytes + 2, dtype=torch.uint8)
        got[key] = memory[2:].view(torch.bfloat16).view(tensor.shape)
        got[key].view(torch.int16).copy_(tensor.view(torch.int16))
    check_same(got, sent, "here")
    got["residual"].view(-1).view(torch.uint8)[7] ^= 128
    with pytest.raises(Mismatch, match="residual differs at byte 7"):
        check_same(got, sent, "here")


@pytest.mark.parametrize(
    "change",
    [
        lambda got: got.pop("residual"),
        lambda got: got.update(residual=got["residual"].view(torch.int16)),
        lambda got: got.update(residual=got["residual"].view(-1)),
        lambda got: got.update(more=torch.ones(1)),
    ],
    ids=["missing", "dtype", "shape", "additional"],
)
def test_other_dict_is_noticed(change: Callable[[Tensors], object]) -> None:
    sent = Payload(LITTLE).tensors
    got = dict(sent)
    change(got)
    with pytest.raises(Mismatch):
        check_same(got, sent, "here")


def test_contents_follow_from_the_nonce_alone() -> None:
    one, other = Payload(LITTLE), Payload(LITTLE)
    one.fill(5)
    one.fill(77)
    check_same(one.tensors, other.fill(77), "here")
    before = one.tensors["residual"].clone().view(torch.int64)
    assert bool((one.fill(78)["residual"].view(torch.int64) != before).all())


class Loop(Blocking):
    """Hands out what was sent, after `change`."""

    def __init__(self, change: Callable[[int, Tensors], None] = lambda count, tensors: None) -> None:
        self._change = change
        self._queue: queue.Queue[Tensors] = queue.Queue()
        self._count = 0

    def send(self, tensors: Tensors) -> None:
        self._queue.put({name: tensor.clone() for name, tensor in tensors.items()})

    def recv(self) -> Tensors:
        got = self._queue.get(timeout=10)
        self._change(self._count, got)
        self._count += 1
        return got


def flip_at(index: int) -> Callable[[int, Tensors], None]:
    def change(count: int, tensors: Tensors) -> None:
        if count == index:
            tensors["residual"].view(-1).view(torch.uint8)[-1] ^= 1

    return change


def test_round_trips_compare_the_first_and_some_more() -> None:
    trips = near_trips(Loop(), Payload(LITTLE), 40)
    assert len(trips.times_us) == 40
    assert trips.checked_dicts == CHECKS + 1


@pytest.mark.parametrize("index", [0, warm_trips(LITTLE)])
def test_corrupted_round_trip_ends_the_measurement(index: int) -> None:
    with pytest.raises(Mismatch, match=f"round trip {index} .*residual"):
        near_trips(Loop(flip_at(index)), Payload(LITTLE), 8)


@pytest.mark.parametrize(("index", "where"), [(0, "first"), (5, "last"), (None, "")])
def test_stream_compares_its_first_and_its_last_dict(index: int | None, where: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    near, far = Channel(ours, "far"), Channel(theirs, "near")
    loop = Loop(flip_at(-1 if index is None else index))
    found: list[str] = []

    def receive() -> None:
        try:
            far_stream(loop, Payload(LITTLE), 5, far)
        except Mismatch as error:
            found.append(str(error))
            far.fail(error)

    receiver = threading.Thread(target=receive)
    receiver.start()
    try:
        stream = near_stream(loop, (Payload(LITTLE), Payload(LITTLE)), 5, near)
        assert (stream.dicts, stream.bytes_moved) == (5, 5 * LITTLE.dict_bytes)
    except Mismatch as error:
        found.append(str(error))
    receiver.join()
    ours.close()
    theirs.close()
    assert all(f"{where} dict" in text and "residual differs" in text for text in found)
    assert bool(found) == (index is not None)


# ---- what becomes of the figures -------------------------------------------------------------------------


def turn(index: int, transport: str, rtt_us: float | None, gb_per_s: float = 1.0) -> Turn:
    return Turn(index, transport, SMALL, 10, rtt_us, rtt_us, 10, gb_per_s, 0.5)


def test_percentile_lies_between_the_nearest_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([7.0], 99) == 7.0
    assert percentile(list(range(101)), 99) == 99.0


def test_row_is_the_median_of_its_rounds() -> None:
    turns = [turn(index, "socket", value) for index, value in enumerate((9.0, 1.0, 2.0))]
    (row,) = rows_of(turns)
    assert (row.transport, row.size, row.rounds, row.rtt_p50_us) == ("socket", SMALL, 3, 2.0)
    (ceiling,) = rows_of([turn(0, "memcpy", None)])
    assert ceiling.rtt_p50_us is None


def test_ratio_is_taken_within_each_round() -> None:
    """A machine that becomes ten times slower after the first round changes no ratio."""
    turns = [turn(index, name, base * (1 + 9 * index)) for index in (0, 1) for name, base in BASES.items()]
    assert median_ratio(turns, SMALL, "a", "b", "rtt_p50_us") == pytest.approx(0.5)
    assert median_ratio(turns, SMALL, "a", "c", "rtt_p50_us") is None


BASES = {"a": 10.0, "b": 20.0}


def test_verdict_compares_in_the_right_direction() -> None:
    at_most = next(target for target in TARGETS if target.at_most)
    at_least = next(target for target in TARGETS if not target.at_most)
    assert Verdict(at_most, at_most.limit * 0.9).word == "met"
    assert Verdict(at_most, at_most.limit * 1.1).word == "missed"
    assert Verdict(at_least, at_least.limit * 0.9).word == "missed"
    assert Verdict(at_least, at_least.limit * 1.1).word == "met"
    assert {verdict.word for verdict in judge([])} == {"not measured"}
