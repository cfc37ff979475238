"""The supervisor against fake stages: what is lost is started anew, all together, and not for ever."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zmqpp.errors import LaunchError
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.signals import StopRequested
from zmqpp.pipeline.supervisor import Supervisor
from zmqpp.watch.status import Event, PipelineStatus

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline


class Watched:
    """Runs a supervised fake pipeline until an event of some kind; keeps every event and a status with each."""

    def __init__(self, tmp_path: Path, *behaviours: str, max_restarts: int = 3) -> None:
        self.events: list[Event] = []
        self.statuses: list[PipelineStatus] = []
        self._tmp_path, self._behaviours, self._max_restarts = tmp_path, behaviours, max_restarts

    def run(self, until: str = "", poll: Callable[[], None] = lambda: None) -> PipelineStatus:
        with Launcher(fake_pipeline(*self._behaviours), self._tmp_path / "logs", grace_s=1.0) as launcher:

            def tell(event: Event) -> None:
                self.events.append(event)
                self.statuses.append(supervisor.status())
                if event.kind == until:
                    raise StopRequested(signal.SIGTERM)

            supervisor = Supervisor(
                launcher, max_restarts=self._max_restarts, timeout_s=30, on_poll=poll, on_event=tell
            )
            self.supervisor = supervisor
            supervisor.run()
        raise AssertionError("a supervisor runs for ever")

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def test_a_killed_stage_is_started_anew_while_the_others_wait(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "ok", "once", "ok")
    with pytest.raises(StopRequested):
        watched.run(until="recovered")
    assert watched.kinds == ["ready", "lost", "restarting", "recovered"]
    assert watched.events[1].stage == 1 and "SIGKILL" in watched.events[1].text
    first, lost, restarting, recovered = watched.statuses
    assert (first.state, restarting.state, recovered.state) == ("ready", "recovering", "ready")
    assert lost.state == "ready"
    assert recovered.restarts == 1 and recovered.reason == "" and "SIGKILL" in restarting.reason
    before, after = ({stage.pid for stage in status.stages} for status in (first, recovered))
    assert len(before) == len(after) == 3 and len(before & after) == 2
    logs = {path.name for path in (tmp_path / "logs").glob("*.log*")}
    assert logs == {"stage_0.log", "stage_1.log", "stage_1.log.1", "stage_2.log"}
    assert watched.supervisor.status().state == "stopped"


def test_no_restart_is_tried_when_none_is_allowed(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "dies", "ok", max_restarts=0)
    with pytest.raises(LaunchError, match="stage 0 was killed by SIGKILL"):
        watched.run()
    assert watched.kinds == ["ready", "lost"]
    status = watched.supervisor.status()
    assert (status.state, status.restarts) == ("failed", 0) and "SIGKILL" in status.reason


def test_restarts_in_a_row_are_limited(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "ok", "dies", max_restarts=1)
    with pytest.raises(LaunchError, match="stage 1 was killed by SIGKILL"):
        watched.run()
    assert watched.kinds == ["ready", "lost", "restarting", "recovered", "lost"]
    assert watched.supervisor.status().restarts == 1


def test_a_pipeline_that_was_never_ready_is_not_started_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "ok", "fail")
    with pytest.raises(LaunchError, match="layers 3-4 belong to no stage"):
        watched.run()
    assert watched.kinds == [] and watched.supervisor.status().state == "failed"


def test_the_status_tells_how_far_each_stage_has_come(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "ok", "slow")
    seen: list[PipelineStatus] = []

    def poll() -> None:
        seen.append(watched.supervisor.status())
        first, second = seen[-1].stages
        if (first.state, second.state) == ("ready", "loading"):
            raise StopRequested(signal.SIGTERM)

    with pytest.raises(StopRequested):
        watched.run(poll=poll)
    ready, loading = seen[-1].stages
    assert seen[-1].state == "starting" and seen[-1].model == "fake" and seen[-1].total_stages == 2
    assert loading.state == "loading" and loading.layers is not None and loading.layers.end == 8
    assert ready.parameters == 1_970_000 and ready.link.lane == "shm" and ready.log.endswith("stage_0.log")
    assert ready.pid > 0 and loading.pid > 0 and ready.since > 0
