"""Orders to a supervised pipeline of fake stages, through the socket that people's commands use."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zmqpp.errors import ConfigError, LaunchError, RemoteError, ZmqppError
from zmqpp.pipeline.events import EVENTS_VARIABLE, emit
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.order_client import give_order
from zmqpp.pipeline.order_server import SOCKET_NAME, OrderServer
from zmqpp.pipeline.orders import Orders
from zmqpp.pipeline.signals import StopRequested
from zmqpp.pipeline.supervisor import Supervisor
from zmqpp.watch.status import Event, PipelineStatus

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline

STOP = {"order": "drain", "timeout_s": 10, "stop": True}
DRAIN = {"order": "drain", "timeout_s": None, "stop": False}


def restart(*stages: int, env: dict[str, str] | None = None, drain_s: float = 10) -> dict[str, Any]:
    order = {"order": "restart", "stages": list(stages), "flags": [], "environment": env or {}}
    return {**order, "drain_s": drain_s}


class Door:
    """An entrance that remembers; `running` is what the test says."""

    def __init__(self) -> None:
        self.running = 0
        self.draining = self.held = False
        self.told: list[str] = []

    def drain(self) -> None:
        self.draining = True

    def resume(self) -> None:
        self.draining = False

    def hold(self) -> None:
        self.held = True
        self.told.append("hold")

    def release(self) -> None:
        self.held = False
        self.told.append("release")


class Ordered:
    """Runs a supervised fake pipeline on the main thread, and `act` on another one once it is ready."""

    def __init__(self, folder: Path, *behaviours: str, max_restarts: int = 3, drain_s: float = 0.0) -> None:
        self.folder, self.door = folder, Door()
        self.events: list[Event] = []
        self.lines: list[str] = []
        self._behaviours, self._max_restarts, self._drain_s = behaviours, max_restarts, drain_s
        self._ready = threading.Event()

    def run(self, act: Callable[[], object]) -> PipelineStatus:
        """Its last status; `act` done, the pipeline is ended by an order."""
        with Launcher(fake_pipeline(*self._behaviours), self.folder, grace_s=1.0) as launcher:
            self.launcher, orders = launcher, Orders()
            self.supervisor = Supervisor(
                launcher,
                max_restarts=self._max_restarts,
                timeout_s=30,
                on_event=self._tell,
                entrance=self.door,
                orders=orders,
                drain_s=self._drain_s,
            )
            failed: list[BaseException] = []
            thread = threading.Thread(target=self._act, args=(act, failed))
            thread.start()
            try:
                with OrderServer(self.folder, orders, self.door):
                    self.supervisor.run()
            finally:
                self._ready.set()
                thread.join()
            if failed:
                raise failed[0]
        return self.supervisor.status()

    def act_at_once(self) -> None:
        """Not only when it is ready."""
        self._ready.set()

    def _act(self, act: Callable[[], object], failed: list[BaseException]) -> None:
        assert self._ready.wait(30)
        while not (self.folder / SOCKET_NAME).exists():
            time.sleep(0.01)
        try:
            act()
        except BaseException as error:
            failed.append(error)
        self.door.running = 0
        try:
            self.order(STOP)
        except ZmqppError:
            pass  # It has ended already.

    def order(self, order: dict[str, Any]) -> None:
        give_order(self.folder, order, self.lines.append)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "ready":
            self._ready.set()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def await_state(ordered: Ordered, state: str) -> None:
    deadline = time.monotonic() + 60
    while ordered.supervisor.status().state != state:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stage_is_replaced_as_asked_for_and_keeps_its_new_setting(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", "ok")
    pids: list[list[int]] = []

    def act() -> None:
        pids.append(ordered.launcher.pids())
        ordered.order(restart(2, 1, env={"SOME": "thing"}))
        pids.append(ordered.launcher.pids())

    status = ordered.run(act)
    before, after = pids
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    assert ordered.kinds[:5] == ["ready", "restarting", "restarted", "restarting", "restarted"]
    assert [event.stage for event in ordered.events[1:5]] == [2, 2, 1, 1]
    assert (status.losses, status.restarts, status.recoveries, status.replacements) == (0, 0, 0, 2)
    assert [plan.environment.get("SOME") for plan in ordered.launcher.stage_plans] == [None, "thing", "thing"]
    assert any(f"stage 2: stopped (pid {before[2]}" in line for line in ordered.lines)
    assert "all 3 stages are ready; no request was lost" in ordered.lines[-2]


@pytest.mark.parametrize("behaviour", ["fail", "crash"])
def test_a_stage_that_does_not_come_up_is_started_as_it_was(tmp_path: Path, behaviour: str) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", max_restarts=0)
    said = {"fail": "gap: layers 3-4 belong to no stage", "crash": "the model has no layer 9"}[behaviour]

    def act() -> None:
        with pytest.raises(RemoteError, match=f"stage 1 was not replaced, and runs as before.*{said}"):
            ordered.order(restart(1, env={"FAKE_BEHAVIOUR": behaviour}))
        assert ordered.launcher.all_ready()

    status = ordered.run(act)
    assert ordered.kinds[:4] == ["ready", "restarting", "restarting", "restarted"]
    assert (status.losses, status.replacements, status.state) == (0, 0, "stopped")
    assert "FAKE_BEHAVIOUR" not in ordered.launcher.stage_plans[1].environment


def test_a_stage_deaf_to_sigterm_is_killed_and_replaced(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "deaf")
    ordered.run(lambda: ordered.order(restart(1)))
    assert any("did not stop in time and was killed" in line for line in ordered.lines)


def test_another_stage_that_dies_meanwhile_is_replaced_too(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", "once")

    def act() -> None:
        ordered.order(restart(1))
        deadline = time.monotonic() + 30
        while not ordered.supervisor.status().recoveries:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    status = ordered.run(act)
    assert (status.losses, status.recoveries, status.replacements) == (1, 1, 1)
    assert ordered.kinds.count("lost") == ordered.kinds.count("recovered") == 1


def test_stage_0_is_replaced_when_its_requests_are_done_and_new_ones_wait(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")
    ordered.door.running = 3

    def act() -> None:
        pid = ordered.launcher.pids()[0]
        with pytest.raises(RemoteError, match=r"stage 0 was not replaced.*3 requests still run after 0\.3 s"):
            ordered.order(restart(0, drain_s=0.3))
        assert (ordered.launcher.pids()[0], ordered.door.held) == (pid, False)
        threading.Timer(0.5, lambda: setattr(ordered.door, "running", 0)).start()
        ordered.order(restart(0))
        assert ordered.launcher.pids()[0] != pid

    ordered.run(act)
    assert ordered.door.told == ["hold", "release"] * 2
    assert "waiting for 3 requests" in ordered.lines


def test_new_settings_of_stage_0_start_all_anew_and_do_not_stay_if_it_does_not_come_up(
    tmp_path: Path,
) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")

    def act() -> None:
        before = ordered.launcher.pids()
        ordered.order(restart(0, env={"SOME": "thing"}))
        assert not set(before) & set(ordered.launcher.pids())
        with pytest.raises(
            RemoteError, match="stage 0 was not replaced, and runs as before.*layers 3-4 belong"
        ):
            ordered.order(restart(0, env={"FAKE_BEHAVIOUR": "fail"}))
        assert ordered.launcher.all_ready() and not ordered.door.held

    status = ordered.run(act)
    assert ordered.launcher.stage_plans[0].environment == {"SOME": "thing"}
    assert (status.losses, status.restarts) == (0, 0)


def test_a_drain_waits_says_how_many_are_left_and_can_be_taken_back(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")
    ordered.door.running = 2
    ended: list[str] = []

    def drain() -> None:
        try:
            ordered.order(DRAIN)
        except RemoteError as error:
            ended.append(str(error))

    def act() -> None:
        with pytest.raises(RemoteError, match=r"2 requests still run after 0\.2 s; new ones are refused"):
            ordered.order({**DRAIN, "timeout_s": 0.2})
        assert ordered.supervisor.status().draining
        thread = threading.Thread(target=drain)
        thread.start()
        while ordered.lines.count("waiting for 2 requests") < 2:
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="another drain is under way"):
            ordered.order(restart(1))
        ordered.order({"order": "resume"})
        thread.join()
        ordered.door.running = 0
        ordered.order(DRAIN)
        ordered.order(DRAIN)

    ordered.run(act)
    assert ended == ["requests are taken again, as someone else has asked for"]
    assert [kind for kind in ordered.kinds if kind in ("draining", "resumed")][:3] == [
        "draining",
        "resumed",
        "draining",
    ]
    assert ordered.lines[-1] == "no request is left; the pipeline ends"


@pytest.mark.parametrize(("drain_s", "left"), [(0.0, 1), (0.3, 1), (30.0, 0)])
def test_after_sigterm_requests_that_run_may_finish_for_so_long(
    tmp_path: Path, drain_s: float, left: int
) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", drain_s=drain_s)
    ordered.door.running = 1
    stopped_with: list[int] = []

    def act() -> None:
        if not left:
            threading.Timer(0.5, lambda: setattr(ordered.door, "running", 0)).start()
        os.kill(os.getpid(), signal.SIGTERM)
        await_state(ordered, "stopped")
        stopped_with.append(ordered.door.running)

    with pytest.raises(StopRequested):
        ordered.run(act)
    assert stopped_with == [left]
    assert ordered.door.draining == bool(drain_s)


def test_a_second_signal_cuts_the_requests_short(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", drain_s=600.0)
    ordered.door.running = 1

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while not ordered.door.draining:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        await_state(ordered, "stopped")

    with pytest.raises(StopRequested):
        ordered.run(act)
    assert "draining" in ordered.kinds


def test_a_stage_that_never_comes_back_ends_the_pipeline_by_name(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "worse", max_restarts=2)
    with pytest.raises(
        LaunchError, match=r"stage 1 .*belong to no stage.*given up after 2 restarts in a row"
    ):
        ordered.run(lambda: await_state(ordered, "failed"))
    status = ordered.supervisor.status()
    assert status.state == "failed" and "stage 1" in status.reason
    assert (status.restarts, status.losses) == (2, 3)
    assert ordered.kinds == ["ready", "lost", "restarting", "lost", "restarting", "lost"]
    assert {event.stage for event in ordered.events if event.kind == "lost"} == {1}


def test_who_asks_when_the_pipeline_fails_is_told(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "worse", max_restarts=0)
    ordered.door.running = 1
    told: list[str] = []

    def act() -> None:
        try:
            ordered.order(DRAIN)
        except ZmqppError as error:
            told.append(str(error))

    with pytest.raises(LaunchError):
        ordered.run(act)
    assert len(told) == 1 and "stage 1 was killed by SIGKILL" in told[0]


def test_a_refused_peer_is_an_event_of_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "logs" / "events.jsonl"))

    def act() -> None:
        emit(1, "refused", peer="10.0.0.9", why="wrong key")
        while "refused" not in ordered.kinds:
            time.sleep(0.01)

    ordered.run(act)
    event = next(event for event in ordered.events if event.kind == "refused")
    assert (event.stage, event.text) == (1, "stage 1 refused a peer at 10.0.0.9: wrong key")
    assert ordered.launcher.states[1].phase != "refused" and not ordered.launcher.states[1].reason


def test_what_only_the_engine_misses_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok", "ok")
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "logs" / "events.jsonl"))

    def counted() -> tuple[int, int]:
        status = ordered.supervisor.status()
        return status.losses, status.recoveries

    def await_counted(losses: int, recoveries: int) -> None:
        deadline = time.monotonic() + 30
        while counted() != (losses, recoveries):
            assert time.monotonic() < deadline, counted()
            time.sleep(0.01)

    def act() -> None:
        emit(1, "missed", reason="stage 1 gave no sign of life for 5 s")
        await_counted(1, 0)
        waiting = ordered.supervisor.status()  # a replica that waits for a hung stage gets no more requests
        assert (waiting.state, waiting.reason) == ("recovering", "stage 1 gave no sign of life for 5 s")
        while "lost" not in ordered.kinds:
            time.sleep(0.01)
        assert ordered.launcher.states[1].reason == ""  # that of a process, which runs
        emit(0, "whole", seconds=3.0)
        await_counted(1, 1)
        while "recovered" not in ordered.kinds:
            time.sleep(0.01)
        assert ordered.supervisor.status().state == "ready"
        os.kill(ordered.launcher.pids()[2], signal.SIGKILL)
        await_counted(2, 2)

    ordered.run(act)
    assert ordered.kinds[:6] == ["ready", "lost", "recovered", "lost", "restarting", "recovered"]
    assert "no sign of life" in ordered.events[1].text and "SIGKILL" in ordered.events[3].text


def test_an_order_to_a_pipeline_that_still_starts_waits_and_says_so(tmp_path: Path) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")
    ordered.act_at_once()
    ordered.run(lambda: ordered.order(DRAIN))
    assert ordered.lines[:2] == [
        "waiting for the pipeline: it is starting",
        "no request is left; new ones are refused until `zmqpp drain --resume`",
    ]


def test_where_no_socket_can_be_made_the_pipeline_serves_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / SOCKET_NAME).mkdir()
    with OrderServer(tmp_path, Orders(), Door()):
        pass
    said = capsys.readouterr().err
    assert "cannot be made" in said and "zmqpp restart and drain" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (restart(7), "--stage 7: the stages are 0 to 1"),
        ({"order": "dance"}, "not an order"),
        ({"order": "drain"}, "not an order"),
        ({"order": "restart", "stages": "x", "flags": [], "environment": {}, "drain_s": 1}, "not an order"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path: Path, order: dict[str, Any], words: str) -> None:
    ordered = Ordered(tmp_path / "logs", "ok", "ok")

    def act() -> None:
        with pytest.raises(ConfigError, match=words):
            ordered.order(order)

    assert ordered.run(act).state == "stopped"


def test_the_socket_is_its_users_alone_in_a_folder_of_any_depth_and_gone_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30) / "logs"
    folder.mkdir(parents=True)
    stale = folder / SOCKET_NAME
    stale.symlink_to("/etc/hostname")
    ordered = Ordered(folder, "ok", "ok")

    def act() -> None:
        found = stale.lstat()
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as rude:
            fd = os.open(folder, os.O_RDONLY)
            rude.connect(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
            os.close(fd)
            rude.sendall(b"\xff" * 100_000)
            assert b"not an order" in rude.recv(1000)

    ordered.run(act)
    assert not stale.exists() and Path("/etc/hostname").exists()
    with pytest.raises(ConfigError, match="no pipeline runs with its logs in"):
        give_order(folder, STOP, print)
    with pytest.raises(ConfigError, match="no pipeline runs"):
        give_order(tmp_path / "nowhere", STOP, print)
