"""Several pipelines of fake stages side by side: each is mended alone, and all end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from zmqpp.cli import main, serve_plan
from zmqpp.errors import ConfigError, LaunchError, RemoteError
from zmqpp.gateway.entrance import Entrance
from zmqpp.pipeline.order_client import give_order
from zmqpp.pipeline.order_server import SOCKET_NAME, OrderServer
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.ports import free_port
from zmqpp.pipeline.replica import Care
from zmqpp.pipeline.replica_orders import JointEntrance, ReplicaOrders
from zmqpp.pipeline.replicas import Replicas
from zmqpp.watch.status import Event, PipelineStatus

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline

STOP = {"order": "drain", "timeout_s": 10, "stop": True}


def restart(*stages: object, env: dict[str, str] | None = None) -> dict[str, Any]:
    order = {"order": "restart", "stages": list(stages), "flags": [], "environment": env or {}}
    return {**order, "drain_s": 10}


class Running:
    """Runs replicas on the main thread, and `act` on another one once all are ready."""

    def __init__(self, folder: Path, *replicas: tuple[str, ...], max_restarts: int = 3) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.lines: list[str] = []
        self.entrances = [Entrance() for _ in replicas]
        self._replicas, self._max_restarts = replicas, max_restarts
        self._all_ready = threading.Event()

    def run(self, act: Callable[[], object], then: dict[str, Any] | None = STOP) -> None:
        plans = [fake_pipeline(*behaviours) for behaviours in self._replicas]
        care = Care(self._max_restarts, timeout_s=30, grace_s=1.0, on_event=self._tell)
        failed: list[BaseException] = []
        thread = threading.Thread(target=self._act, args=(act, then, failed))
        with Replicas(plans, self.folder, care, self.entrances) as self.replicas:
            orders = ReplicaOrders([replica.orders for replica in self.replicas.all])
            thread.start()
            try:
                with OrderServer(self.folder, orders, JointEntrance(self.entrances)):
                    self.replicas.run()
            finally:
                self._all_ready.set()
                thread.join()
        if failed:
            raise failed[0]

    def _act(
        self, act: Callable[[], object], then: dict[str, Any] | None, failed: list[BaseException]
    ) -> None:
        assert self._all_ready.wait(30)
        try:
            act()
        except BaseException as error:
            failed.append(error)
        if then is not None or failed:
            try:
                self.order(then or STOP)
            except (ConfigError, RemoteError):
                pass  # they have ended

    def order(self, order: dict[str, Any]) -> None:
        give_order(self.folder, order, self.lines.append)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if [one.kind for one in self.events].count("ready") == len(self._replicas):
            self._all_ready.set()

    def status(self, replica: int) -> PipelineStatus:
        return self.replicas.all[replica].supervisor.status()

    def pids(self) -> list[list[int]]:
        return [[stage.pid for stage in self.status(n).stages] for n in range(len(self._replicas))]

    def await_true(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, self.events
            time.sleep(0.02)


def test_a_lost_stage_is_replaced_in_its_replica_and_the_other_hears_nothing_of_it(tmp_path: Path) -> None:
    running = Running(tmp_path / "logs", ("ok", "ok"), ("ok", "ok"))

    def act() -> None:
        before = running.pids()
        os.kill(before[1][0], signal.SIGKILL)
        running.await_true(lambda: running.status(1).state == "recovering")
        assert running.replicas.all[1].supervisor.lost_from_outside
        assert running.status(0).state == "ready"
        running.await_true(lambda: running.status(1).recoveries == 1)
        after = running.pids()
        assert after[0] == before[0] and [a == b for a, b in zip(after[1], before[1], strict=True)] == [
            False,
            True,
        ]

    running.run(act)
    lost = [event for event in running.events if event.kind == "lost"]
    assert [(event.replica, event.stage) for event in lost] == [(1, 0)]
    assert lost[0].text.startswith("replica 1: stage 0 was killed by SIGKILL")
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= {"replica_0", "replica_1"}
    assert (tmp_path / "logs" / "replica_1" / "stage_0.log.1").exists()


def test_one_that_fails_for_good_leaves_the_others_and_the_last_one_ends_all(tmp_path: Path) -> None:
    running = Running(tmp_path / "logs", ("ok", "ok"), ("ok", "worse"), max_restarts=1)

    def act() -> None:
        running.await_true(lambda: running.status(1).state == "failed")
        assert not running.replicas.all[1].supervisor.lost_from_outside
        assert running.replicas.all[0].supervisor.lost_from_outside
        assert running.status(0).state == "ready"
        with pytest.raises(RemoteError, match="replica 1 has ended"):
            running.order(restart("1.0"))
        running.order({**STOP, "stop": False})
        running.order({"order": "resume"})
        assert not any(entrance.draining for entrance in running.entrances)
        for pid in running.pids()[0]:
            os.kill(pid, signal.SIGKILL)
        running.await_true(lambda: running.status(0).recoveries == 1)

    running.run(act)  # an order ends it: no error
    assert any("replica 1: the pipeline failed" in line for line in running.lines)


def test_when_all_have_failed_so_has_the_whole(tmp_path: Path) -> None:
    running = Running(tmp_path / "logs", ("ok", "worse"), ("ok", "worse"), max_restarts=0)
    with pytest.raises(LaunchError, match="replica [01]: stage 1 was killed by SIGKILL"):
        running.run(lambda: None, then=None)


def test_one_that_never_comes_up_ends_all_at_once(tmp_path: Path) -> None:
    running = Running(tmp_path / "logs", ("ok", "slow"), ("ok", "fail"))
    started = time.monotonic()
    with pytest.raises(LaunchError, match="replica 1: stage 1 .*layers 3-4 belong to no stage"):
        running.run(lambda: None, then=None)
    assert time.monotonic() - started < 15


def test_stages_are_replaced_by_name_one_replica_after_another(tmp_path: Path) -> None:
    running = Running(tmp_path / "logs", ("ok", "ok"), ("ok", "ok"))

    def act() -> None:
        before = running.pids()
        running.order(restart("1.1", env={"SOME": "thing"}))
        after = running.pids()
        assert (after[0], after[1][0]) == (before[0], before[1][0]) and after[1][1] != before[1][1]
        running.order(restart("0.all"))
        assert not set(running.pids()[0]) & set(before[0]) and running.pids()[1] == after[1]
        running.order({**restart(), "stages": "all"})
        assert not set(running.pids()[1]) & set(after[1])
        for wrong, said in ((0, "give 0.0 to 1.0, or all"), ("2.0", "the replicas are 0 to 1")):
            with pytest.raises(ConfigError, match=said):
                running.order(restart(wrong))
        with pytest.raises(ConfigError, match="the stages are 0 to 1"):
            running.order(restart("1.7"))

    running.run(act)
    assert [running.status(n).replacements for n in range(2)] == [4, 3]
    assert [running.status(n).losses for n in range(2)] == [0, 0]
    finals = [line for line in running.lines if "no request was lost" in line]
    assert [line.partition(":")[0] for line in finals] == ["replica 1", "replica 0", "replica 0", "replica 1"]


def test_a_replica_without_replicas_says_so() -> None:
    from zmqpp.pipeline.stage_name import one_of_replica, read_stage

    assert (read_stage("7"), read_stage("1.0"), read_stage("1.all")) == (7, "1.0", "1.all")
    assert (one_of_replica("1.0"), one_of_replica("12.all")) == ((1, 0), (12, None))
    for wrong in ("1.", ".1", "1.x", "all.0", "-1", "1.0.0", "99999", "²"):
        with pytest.raises(ConfigError, match="give the number of a stage"):
            read_stage(wrong)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Of a `zmqpp serve` that starts two replicas of fakes."""

    def plans(*_: object) -> list[PipelinePlan]:
        return [fake_pipeline("ok", "ok"), fake_pipeline("ok", "ok")]

    monkeypatch.setattr(serve_plan, "serve_plans", plans)
    return ["serve", "m", "--port", str(free_port()), "--log-dir", str(tmp_path / "logs")]


def await_ready(words: list[str]) -> str:
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}:
                return url
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("never ready")


def test_serve_shows_names_of_stages_and_ends_drained_with_0(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def act() -> None:
        url = await_ready(words)
        codes.append(main(["status", url, "--once"]))
        codes.append(main(["restart", "--stage", "1.1", "--log-dir", str(tmp_path / "logs")]))
        body = {"model": "fake", "prompt": "x"}
        answer = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=20)
        assert answer.status_code == 200 and "exception " in answer.text
        codes.append(main(["drain", "--stop", "--log-dir", str(tmp_path / "logs")]))

    thread = threading.Thread(target=act)
    thread.start()
    assert main(words) == 0
    thread.join()
    out, err = capsys.readouterr()
    assert codes == [0, 0, 0] and err == ""
    assert "fake in 2 replicas of 2 stages each on ports" in out and out.count("serving 'fake' on") == 1
    assert "stage 1.0: " in out and "replica 1: stage 1 was replaced, as asked for" in out
    assert not (tmp_path / "logs" / SOCKET_NAME).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_and_the_second_one_at_once(
    words: list[str], capsys: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    running: list[object] = []

    def act() -> None:
        running.append(await_ready(words))
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=act)
    thread.start()
    assert main(words) == 128 + signum
    thread.join()
    err = capsys.readouterr().err
    assert running and err.count("stopping the stages") == 1
