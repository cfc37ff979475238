"""The launcher against fake stages: readiness, early exits, and nothing left behind however it ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqpp.errors import ConfigError, LaunchError, RemoteError
from zmqpp.pipeline.client import Completion, stream_completion
from zmqpp.pipeline.events import EVENTS_VARIABLE, emit
from zmqpp.pipeline.launcher import Launcher

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline
from fake_stage import TEXT

MARK = "ZMQPP_TEST_MARK"


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything a test starts, its guards too, carries the mark; after the test none may be left."""
    value = f"{os.getpid()}-{random.getrandbits(64):x}"
    monkeypatch.setenv(MARK, value)
    yield value
    assert wait_until_gone(value), (
        f"processes left: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in marked(value)]}"
    )


def marked(value: str) -> list[int]:
    """Live processes that carry the mark. The kernel shows the environment a process was started with."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_gone(value: str, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while marked(value) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not marked(value)


def launched(tmp_path: Path, *behaviours: str) -> subprocess.Popen[str]:
    script = Path(__file__).parent / "fake_pipeline.py"
    command = [sys.executable, str(script), str(tmp_path / "logs"), *behaviours]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"the launcher ended before {word}: {process.communicate()[1]}")


def test_all_stages_become_ready_answer_and_stop(tmp_path: Path) -> None:
    plan = fake_pipeline("ok", "ok")
    with Launcher(plan, tmp_path / "logs") as launcher:
        launcher.start()
        launcher.wait_ready(30)
        assert [state.phase for state in launcher.states] == ["ready", "ready"]
        text = list(stream_completion(plan.api.url, Completion("fake", "try", 8), timeout_s=10))
    assert text == TEXT
    assert [(state.layers, state.parameters, state.sent_bytes) for state in launcher.states] == [
        ("0-4 of 8", 1_970_000, 123_456),
        ("4-8 of 8", 1_970_000, 123_456),
    ]


def test_refused_completion_says_why(tmp_path: Path) -> None:
    plan = fake_pipeline("ok", "ok")
    with Launcher(plan, tmp_path / "logs") as launcher:
        launcher.start()
        launcher.wait_ready(30)
        with pytest.raises(ConfigError, match="prompt is too long"):
            list(stream_completion(plan.api.url, Completion("fake", "refuse", 8), timeout_s=10))
    with pytest.raises(RemoteError, match=plan.api.url):
        list(stream_completion(plan.api.url, Completion("fake", "try", 8), timeout_s=10))


def test_stage_that_reports_failure_is_named_with_its_reason(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("slow", "fail"), tmp_path / "logs") as launcher:
        launcher.start()
        with pytest.raises(
            LaunchError, match=r"stage 1 .*gap: layers 3-4 belong to no stage; .*stage_1\.log"
        ):
            launcher.wait_ready(30)


def test_stage_that_dies_is_named_with_exit_code_cause_and_log(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("slow", "crash"), tmp_path / "logs") as launcher:
        launcher.start()
        with pytest.raises(
            LaunchError, match=r"stage 1 .*code 3.*ValueError: the model has no layer 9; .*stage_1\.log"
        ):
            launcher.wait_ready(30)


def test_stage_killed_while_serving_is_noticed(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("ok", "ok"), tmp_path / "logs") as launcher:
        launcher.start()
        launcher.wait_ready(30)
        os.kill(next(pid for pid in marked(os.environ[MARK]) if is_stage(pid, 1)), signal.SIGKILL)
        deadline = time.monotonic() + 5
        with pytest.raises(LaunchError, match="stage 1 was killed by SIGKILL"):
            while time.monotonic() < deadline:
                launcher.check()
                time.sleep(0.05)


def test_who_was_killed_is_the_cause_though_a_neighbour_said_first_that_it_lost_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Launcher(fake_pipeline("ok", "ok"), tmp_path / "logs") as launcher:
        launcher.start()
        launcher.wait_ready(30)
        pid = launcher.pids()[1]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "logs" / "events.jsonl"))
        emit(0, "failed", reason="its engine process is gone")
        with pytest.raises(LaunchError, match="stage 1 was killed by SIGKILL"):
            launcher.check()


def test_a_log_folder_that_someone_removed_does_not_stand_in_the_way_of_a_restart(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("ok", "ok"), tmp_path / "logs") as launcher:
        launcher.start()
        launcher.wait_ready(30)
        shutil.rmtree(tmp_path / "logs")
        launcher.restart()
        launcher.wait_ready(30)
        assert (tmp_path / "logs" / "stage_1.log").exists()


def is_stage(pid: int, index: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return command[1:3] == [str(Path(__file__).parent / "fake_stage.py").encode(), str(index).encode()]


def test_slow_stage_fails_after_the_timeout_with_its_state(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("ok", "slow"), tmp_path / "logs") as launcher:
        launcher.start()
        with pytest.raises(LaunchError, match=r"not ready after 1\.5 s: stage 1 is loading"):
            launcher.wait_ready(1.5)


def test_stage_deaf_to_sigterm_is_killed_with_its_children_after_the_grace(tmp_path: Path) -> None:
    started = 0.0
    with Launcher(fake_pipeline("ok", "deaf"), tmp_path / "logs", grace_s=0.5) as launcher:
        launcher.start()
        launcher.wait_ready(30)
        started = time.monotonic()
    assert 0.4 < time.monotonic() - started < 5


def test_two_pipelines_do_not_share_a_log_folder(tmp_path: Path) -> None:
    with (
        Launcher(fake_pipeline("ok", "ok"), tmp_path / "logs"),
        pytest.raises(ConfigError, match="in use by another pipeline"),
        Launcher(fake_pipeline("ok", "ok"), tmp_path / "logs"),
    ):
        pass


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("word", "behaviours"), [("STARTED", ("slow", "slow")), ("READY", ("orphan", "orphan"))]
)
def test_signal_stops_everything(
    tmp_path: Path, mark: str, word: str, behaviours: tuple[str, ...], signum: int
) -> None:
    with launched(tmp_path, *behaviours) as process:
        wait_for(process, word)
        process.send_signal(signum)
        assert process.wait(15) == 128 + signum
        assert marked(mark) == []
        assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_ctrl_c_at_any_moment_of_the_start_leaves_nothing(tmp_path: Path, mark: str, delay_s: float) -> None:
    with launched(tmp_path, "orphan", "ok", "ok") as process:
        wait_for(process, "ENTERED")
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert marked(mark) == []


def test_second_ctrl_c_cuts_the_grace_short(tmp_path: Path) -> None:
    with Launcher(fake_pipeline("ok", "deaf"), tmp_path / "logs", grace_s=60) as launcher:
        launcher.start()
        launcher.wait_ready(30)
        started = time.monotonic()
        # The first asks for the stop, the second comes while it waits for the deaf stage.
        hasten = "import os,sys,time; time.sleep(0.5); os.kill(int(sys.argv[1]), 2)"
        with subprocess.Popen([sys.executable, "-c", hasten, str(os.getpid())]):
            launcher.stop()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("behaviours", [("ok", "ok"), ("deaf", "orphan")])
def test_launcher_killed_outright_leaves_nothing(
    tmp_path: Path, mark: str, behaviours: tuple[str, ...]
) -> None:
    with launched(tmp_path, *behaviours) as process:
        wait_for(process, "READY")
        process.kill()
    assert wait_until_gone(mark)


def test_stages_end_even_when_the_guard_was_killed_too(tmp_path: Path, mark: str) -> None:
    with launched(tmp_path, "ok", "ok") as process:
        wait_for(process, "READY")
        guards = [
            pid
            for pid in marked(mark)
            if b"zmqpp.pipeline.guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        for pid in guards:
            os.kill(pid, signal.SIGKILL)
        process.kill()
    assert len(guards) == 1
    assert wait_until_gone(mark)
