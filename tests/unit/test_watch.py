"""Counting a stage's time, and the engine's picture of it."""

from __future__ import annotations

import time
from itertools import pairwise

import msgspec
import pytest

from zmqpp.errors import MalformedError
from zmqpp.watch import report
from zmqpp.watch.board import Board
from zmqpp.watch.clock import Moments
from zmqpp.watch.recorder import Recorder
from zmqpp.watch.snapshot import STATUS_VARIABLE, Publisher, read
from zmqpp.watch.status import LinkCounters, Memory, PipelineStatus


def run_step(recorder: Recorder, step: int, tokens: int = 3, requests: int = 2) -> None:
    with recorder.step(step, tokens, requests):
        with recorder.waiting():
            time.sleep(0.01)
        time.sleep(0.02)
        with recorder.sending():
            time.sleep(0.005)


def reported(recorder: Recorder) -> report.StageReport:
    return recorder.report(LinkCounters(lane="shm", bytes_sent=10 * recorder.steps), Memory(1, 2, 3), "cpu")


def test_a_step_is_divided_into_computing_waiting_and_sending() -> None:
    recorder = Recorder()
    run_step(recorder, 7)
    last = recorder.last_step
    assert last is not None and (last.step, last.tokens, last.requests) == (7, 3, 2)
    assert last.compute_s >= 0.02 and last.wait_s >= 0.01 and last.send_s >= 0.005
    counted = reported(recorder)
    assert counted.steps == 1 and counted.tokens == 3
    assert counted.compute_ns + counted.wait_ns + counted.send_ns <= counted.clock_ns - counted.ready_ns
    assert {kind: sum(h.counts) for kind, h in counted.step_seconds.items()} == {
        "compute": 1,
        "wait": 1,
        "send": 1,
    }


def test_spans_are_kept_only_while_a_trace_is_taken_and_leave_no_gap() -> None:
    recorder = Recorder()
    run_step(recorder, 1)
    recorder.start_trace()
    run_step(recorder, 2)
    spans = recorder.end_trace()
    run_step(recorder, 3)
    assert [span.kind for span in spans] == ["compute", "wait", "compute", "send", "compute"]
    assert {span.step for span in spans} == {2}
    assert all(a.end_ns == b.begin_ns for a, b in pairwise(spans))
    assert recorder.end_trace() == []


def test_waiting_outside_a_step_and_a_step_that_fails_are_not_counted() -> None:
    recorder = Recorder()
    with recorder.waiting():
        pass
    with pytest.raises(RuntimeError), recorder.step(1, 1, 1):
        raise RuntimeError
    assert reported(recorder).steps == 0 and recorder.last_step is None
    with recorder.sampling(1):
        time.sleep(0.001)
    counted = reported(recorder)
    assert counted.steps == 0 and counted.compute_ns >= 1_000_000


def test_a_report_survives_its_way_and_other_bytes_are_malformed() -> None:
    recorder = Recorder()
    run_step(recorder, 1)
    sent = reported(recorder)
    assert report.decode(report.encode(sent)) == sent
    for wrong in (b"", b"\x00", msgspec.msgpack.encode({"steps": "many"})):
        with pytest.raises(MalformedError):
            report.decode(wrong)


def test_the_board_knows_steps_in_flight_tokens_and_the_bubble() -> None:
    board = Board(2, "m", "s")
    recorders = [Recorder(), Recorder()]
    board.set_states("ready", pipeline="ready")
    for index, recorder in enumerate(recorders):
        board.take(index, reported(recorder))
    board.send(1, 5, 2)
    assert board.status().in_flight == 1
    for recorder in recorders:
        run_step(recorder, 1)  # one after the other: each computes less than half of the time
    for index, recorder in enumerate(recorders):
        board.take(index, reported(recorder))
    board.finish(1, 4)
    status = board.status()
    assert (status.state, status.in_flight, status.steps, status.tokens) == ("ready", 0, 1, 4)
    assert 0.3 < status.bubble < 0.9 and 0.3 < status.bubble_total < 0.9
    for stage in status.stages:
        assert stage.state == "ready" and stage.steps == 1 and stage.link.bytes_sent == 10
        shares = stage.recent
        assert shares.compute + shares.wait + shares.send + shares.idle == pytest.approx(1.0)
        assert stage.recent.tokens_per_s > 0


def test_steps_count_when_somebody_asks_or_there_is_time_for_it() -> None:
    board = Board(2)
    board.start_trace()
    version = board.version
    board.send(1, 5, 2, begun_ns=time.monotonic_ns())
    board.send(2, 3, 1)
    board.finish(1, 2)
    assert board.version > version
    board.settle()
    board.finish(2, 1)
    status = board.status()
    assert (status.in_flight, status.steps, status.tokens) == (0, 2, 3)
    trace = board.end_trace()
    assert [span.step for span in trace.spans] == [1, 2] and trace.sizes == {1: (5, 2), 2: (3, 1)}
    assert all(span.begin_ns <= span.end_ns for span in trace.spans)


def test_an_answer_is_sent_before_its_step_is_counted() -> None:
    recorder = Recorder()
    recorder.start_trace()
    with recorder.step(1, 1, 1):
        time.sleep(0.001)
        with recorder.sending():
            time.sleep(0.001)
            assert recorder.steps == 0
    with recorder.sampling(2), recorder.sending():
        time.sleep(0.001)
    spans = recorder.end_trace()
    counted = reported(recorder)
    assert counted.steps == 1 and counted.send_ns >= 2_000_000
    answered = next(span for span in spans if span.kind == "send" and span.step == 1)
    assert Moments(spans).end[1] == answered.begin_ns, "what comes after is not on the step's way"


def test_an_idle_pipeline_has_no_bubble() -> None:
    board = Board(2)
    for _ in range(3):
        for index in range(2):
            board.take(index, reported(Recorder()))
    assert board.status().bubble == board.status().bubble_total == 0.0


def test_a_lost_stage_is_named_in_the_status() -> None:
    board = Board(3)
    board.set_states("ready", pipeline="ready")
    board.fail("stage 1 at tcp://10.0.0.2:15550 is lost", 1)
    status = board.status()
    assert status.state == "failed" and "stage 1" in status.reason
    assert [stage.state for stage in status.stages] == ["ready", "lost", "ready"]
    assert [event.kind for event in status.events] == ["ready", "lost"]


def test_the_status_is_published_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv(STATUS_VARIABLE, str(tmp_path / "status"))
    assert read() is None
    board = Board(2, "m", "s")
    publisher = Publisher(board)
    publisher.publish_if_due()
    first = read()
    assert isinstance(first, PipelineStatus) and first.model == "m" and len(first.stages) == 2
    publisher.publish_if_due()  # nothing new, and not due
    again = read()
    assert again is not None and again.at == first.at
    assert [path.name for path in tmp_path.iterdir()] == ["status"]
