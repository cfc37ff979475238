"""`zmqpp restart` and `zmqpp drain`: mistakes cost one line, before anything is asked of a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import zmqpp
from zmqpp.cli.restart import read_stages
from zmqpp.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["restart"], "the following arguments are required: --stage"),
        (["restart", "--stage", "x"], "--stage x: give the number of a stage, several, or all"),
        (["restart", "--stage", "1", "1"], "give each stage once"),
        (
            ["restart", "--stage", "1.x"],
            "--stage 1.x: give the number of a stage, several, or all; with replicas",
        ),
        (
            ["restart", "--stage", "1", "--", "--data-parallel-size", "2"],
            "it stays as `zmqpp serve` was told",
        ),
        (["restart", "--stage", "1", "--env", "=x"], "--env =x: give NAME=VALUE"),
        (["restart", "--stage", "1", "--drain-timeout", "-1"], "--drain-timeout -1"),
        (["restart", "--stage", "1", "--", "--port", "1"], "--port follows from the plan: it stays"),
        (["restart", "--stage", "1", "--", "--pipeline-stage-idx", "2"], "leave it out"),
        (["restart", "--stage", "1", "--log-dir", "/nowhere"], "no pipeline runs with its logs in /nowhere"),
        (["drain", "--log-dir", "/nowhere"], "no pipeline runs with its logs in /nowhere"),
        (["drain", "--timeout", "-3"], "--timeout -3: give seconds"),
        (["drain", "--stop", "--resume"], "not allowed with argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], said: str) -> None:
    done = zmqpp(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_stages_are_replaced_in_the_order_given() -> None:
    assert read_stages(["3", "1", "2"]) == read_stages(["3,1", "2"]) == [3, 1, 2]
    assert read_stages(["1.0", "0.all"]) == ["1.0", "0.all"]
    assert read_stages(["all"]) == "all"
    with pytest.raises(ConfigError):
        read_stages(["all", "1"])


def test_no_pipeline_in_the_default_folder_is_said_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = zmqpp("drain")
    assert done.returncode == 2 and "logs in logs: give the --log-dir" in done.stderr
