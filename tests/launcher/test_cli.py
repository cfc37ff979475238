"""`zmqpp`: the user's mistakes cost one line and exit code 2, before anything is started."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zmqpp.cli import demo, main
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.signals import StopRequested

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline


def outcome(*arguments: str) -> int:
    """The exit code, whether argparse exits or main returns."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--stages", "two"], "invalid int value: 'two'"),
        (["demo", "--stages", "1"], "at least 2 stages"),
        (["demo", "--stages", "9"], "9 stages cannot share 8 layers"),
        (["demo", "--stages", "3", "--ranges", "0-4", "4-8"], "--stages 3 but 2 ranges"),
        (["demo", "--ranges", "0-4", "5-8"], "gap: layers 4-5"),
        (["demo", "--ranges", "0-4,4-x"], "not of the form A-B"),
        (["demo", "--model", "/no/such/model"], "--model: there is no model directory /no/such/model"),
        (["demo", "--prompt", " "], "--prompt is empty"),
        (["demo", "--max-tokens", "0"], "--max-tokens 0"),
        (["demo", "--base-port", "65535"], "--base-port 65535"),
        (["demo", "--port", "0"], "--port 0"),
        (["demo", "--timeout", "-1"], "--timeout -1"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(*arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_base_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert outcome("demo", "--base-port", str(taken.getsockname()[1] - 2)) == 2
    assert "in use" in capsys.readouterr().err


def test_module_and_version() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "zmqpp", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("zmqpp ")


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Makes `zmqpp demo` start fakes with the given behaviours; returns the arguments to run it with."""

    def arrange(*behaviours: str) -> list[str]:
        def plan(_arguments: object) -> PipelinePlan:
            return fake_pipeline(*behaviours)

        monkeypatch.setattr(demo, "demo_plan", plan)
        return ["demo", "--log-dir", str(tmp_path / "logs"), "--timeout", "30"]

    return arrange


def test_demo_streams_the_completion_and_reports_each_stage(
    staged: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*staged("ok", "ok"), "--prompt", 'The "try" [bold]']) == 0
    out, err = capsys.readouterr()
    assert 'The "try" [bold]exception handlers and/or cleanup code\n' in out
    assert "stage 1: ready, layers 4-8 of 8, 1.97M parameters, 3.9 MB" in out
    assert "stage 1: layers 4-8 of 8, 1.97M parameters, sent 123.5 KB, received 654.3 KB in 64 steps" in out
    assert "stage 0: ready, layers 0-4 of 8, 1.97M parameters, 3.9 MB, tensors by shm to stage 1" in out
    assert "64 steps, tensors by shm to stage 1\n" in out
    assert out.endswith("all stages stopped\n")
    assert err == ""


def test_demo_whose_stage_fails_says_why_in_one_line(
    staged: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(staged("ok", "fail")) == 1
    said = capsys.readouterr().err
    assert said.startswith("zmqpp: stage 1 ") and "gap: layers 3-4" in said
    assert said.count("\n") == 1


def test_demo_with_refused_prompt_exits_with_2(
    staged: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*staged("ok", "ok"), "--prompt", "refuse"]) == 2
    assert "prompt is too long" in capsys.readouterr().err


def test_stop_signal_gives_the_shells_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_arguments: object) -> PipelinePlan:
        raise StopRequested(15)

    monkeypatch.setattr(demo, "demo_plan", stopped)
    assert main(["demo"]) == 143
