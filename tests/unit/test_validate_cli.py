"""`zmqpp validate` as a user runs it: the documented report, every problem named, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import HIDDEN, config_of, llama_names, qwen, write_model
from zmqpp.cli import main

DOCUMENTED = """\
✓ Model: MODEL
✓ Detected 32 layers from config.json
✓ Auto-calculated layer ranges for 4 stages

Layer Range Configuration:
------------------------------------------------------------
  Stage 0: [ 0- 8)  ( 8 layers)
  Stage 1: [ 8-16)  ( 8 layers)
  Stage 2: [16-24)  ( 8 layers)
  Stage 3: [24-32)  ( 8 layers)
------------------------------------------------------------

✓ Configuration is VALID
  - All 32 layers are covered exactly once
  - No overlaps or gaps detected
  - Ready for pipeline parallelism
"""


def validate(*arguments: str) -> int:
    try:
        return main(["validate", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(qwen(tmp_path_factory.mktemp("models") / "m32", layers=32, tied=False))


def test_the_report_is_the_documented_one_with_the_estimate_after_it(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate("--model", model, "--num-stages", "4") == 0
    said = capsys.readouterr().out
    assert said.startswith(DOCUMENTED.replace("MODEL", model))
    table = said[len(DOCUMENTED.replace("MODEL", model)) :].splitlines()
    assert table[1] == "Estimate:"
    assert "KV per token" in table[3] and len(table) == 9
    assert [line.split()[0] for line in table[4:8]] == ["0", "1", "2", "3"]


def test_ranges_without_a_model_are_reported_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("--total-layers", "32", "--ranges", "0-8", "8-16", "16-24", "24-32") == 0
    said = capsys.readouterr().out
    assert (
        said
        == "✓ Total layers: 32\n✓ Using the given layer ranges for 4 stages\n"
        + DOCUMENTED.split("stages\n", 1)[1]
    )


def test_ranges_may_be_apart_or_with_commas(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for ranges in (["0-10", "10-20", "20-32"], ["0-10,10-20,20-32"], ["0-10,", " 10-20", "20 - 32"]):
        assert validate("--model", model, "--ranges", *ranges) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("ranges", "problems"),
    [
        (["0-9", "8-16"], [r"overlap: stage 0 (0-9) and stage 1 (8-16) both hold layers 8-9"]),
        (["0-7", "8-16"], ["gap: layers 7-8 are on no stage: between stage 0 (0-7) and stage 1 (8-16)"]),
        (["1-8", "8-16"], ["gap: layers 0-1 are on no stage: before stage 0 (1-8), the first one"]),
        (["0-8", "8-15"], ["gap: layers 15-16 are on no stage: after stage 1 (8-15), the last one"]),
        (["0-8", "8-18"], ["stage 1: layer range 8-18 exceeds the model, which has 16 layers"]),
        (["0-8", "16-8"], ["stage 1: 16-8 is reversed: give it as 8-16"]),
        (["0-8", "8-8", "8-16"], ["stage 1: layer range 8-8 is empty"]),
        (["0-8", "8..16"], ["stage 1: layer range '8..16' is not of the form A-B"]),
        (["8-16", "0-8"], ["order: stage 1 (0-8) lies before stage 0 (8-16)"]),
        (
            ["0-x", "4-12", "8-20", "9-3"],
            [
                "stage 0: layer range '0-x' is not of the form",
                "stage 3: 9-3 is reversed",
                "stage 2: layer range 8-20 exceeds",
                "overlap: stage 1 (4-12) and stage 2 (8-20) both hold layers 8-12",
            ],
        ),
        (["0-2", "20-30"], ["stage 1: layer range 20-30 exceeds", "gap: layers 2-16 are on no stage"]),
        ([f"{'9' * 5000}-1"], ["stage 0"]),
    ],
)
def test_every_problem_is_listed_with_its_stages(
    ranges: list[str], problems: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate("--total-layers", "16", "--ranges", *ranges) == 1
    said = capsys.readouterr().out
    assert "✗ Configuration is INVALID" in said and "is VALID" not in said
    listed = [line for line in said.partition("INVALID\n")[2].splitlines() if line.startswith("  - ")]
    assert len(listed) == len(problems)
    for problem in problems:
        assert any(line.startswith(f"  - {problem}") for line in listed), said


def test_more_stages_than_layers_is_invalid(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("--model", model, "--num-stages", "33") == 1
    assert "  - 33 stages cannot share 32 layers" in capsys.readouterr().out


def test_a_total_that_is_not_the_models_is_invalid(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("--model", model, "--num-stages", "2", "--total-layers", "30") == 1
    assert "wrong total: --total-layers says 30 layers, the model's config.json 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --model DIR, or --total-layers"),
        (["--total-layers", "8"], "give --num-stages N for an even split, or --ranges"),
        (["--total-layers", "0", "--num-stages", "1"], "--total-layers 0"),
        (["--total-layers", "8", "--num-stages", "0"], "--num-stages 0: must be at least 1"),
        (["--total-layers", "8", "--num-stages", "3", "--ranges", "0-4,4-8"], "--num-stages 3 but 2 ranges"),
        (["--total-layers", "8", "--num-stages", "2", "--balance", "memory"], "--balance weighs tensors"),
        (["--model", "MODEL", "--ranges", "0-4,4-8", "--balance", "memory"], "give --num-stages N with it"),
        (["--model", "MODEL"], "give --num-stages N"),
        (["--model", "/no/such", "--num-stages", "2"], "there is no model directory /no/such"),
        (["--model", "MODEL", "--num-stages", "2", "--max-model-len", "-1"], "--max-model-len -1: too small"),
        (["--model", "MODEL", "--num-stages", "2", "--kv-cache-dtype", "fp3"], "--kv-cache-dtype fp3"),
        (["--model", "MODEL", "--num-stages", "two"], "invalid int value"),
        (["--model", "MODEL", "--num-stages", "2", "--balance", "luck"], "invalid choice"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(*[model if argument == "MODEL" else argument for argument in arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


@pytest.fixture
def top_heavy(tmp_path: Path) -> str:
    """As small models are: a table of words as large as several layers, at both ends."""
    shapes = {**llama_names(12, tied=True), "model.embed_tokens.weight": (120, HIDDEN)}
    return str(write_model(tmp_path / "heavy", config_of(12, True), shapes))


def test_a_lopsided_split_is_warned_of_and_the_command_it_names_mends_it(
    top_heavy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate("--model", top_heavy, "--ranges", "0-9", "9-11", "11-12") == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "times the mean memory" in line]
    assert warning.startswith("⚠ Stage 0 has 1.9 times the mean memory of a stage: zmqpp validate --model")
    command = warning.partition("zmqpp validate ")[2].partition(" proposes")[0].split()
    assert validate(*command) == 0
    balanced = capsys.readouterr().out
    assert "✓ Balanced layer ranges for 3 stages by memory" in balanced and "times the mean" not in balanced
    (paste,) = [line.split() for line in balanced.splitlines() if line.startswith("  --ranges ")]
    assert validate("--model", top_heavy, *paste) == 0


def test_a_split_that_cannot_be_better_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {**llama_names(3, tied=False), "lm_head.weight": (900, HIDDEN)}
    folder = write_model(tmp_path / "m", config_of(3), shapes)
    assert validate("--model", str(folder), "--num-stages", "3") == 0
    assert "Stage 2 has 2.8 times the mean memory of a stage: no split into 3 stages does better" in (
        capsys.readouterr().out
    )


def test_json_is_alone_on_stdout_and_says_all(top_heavy: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--max-model-len", "100", "--max-num-seqs", "4", "--kv-cache-dtype", "fp8"]
    assert validate("--model", top_heavy, "--num-stages", "3", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] and told["ranges"] == ["0-4", "4-8", "8-12"] and told["problems"] == []
    per_token = 4 * 2 * 2 * 2
    assert [stage["kv_bytes"] for stage in told["stages"]] == [100 * 4 * per_token] * 3
    assert told["stages"][1]["weight_bytes"] == 4 * told["stages"][1]["parameters"] > 0
    assert validate("--total-layers", "8", "--ranges", "0-4", "5-8", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["valid"] and len(told["problems"]) == 1


def test_a_window_makes_the_cache_an_upper_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = qwen(tmp_path / "m", sliding_window=4096)
    assert validate("--model", str(folder), "--num-stages", "2") == 0
    assert "an upper bound" in capsys.readouterr().out


def test_a_model_with_code_of_its_own_is_read_and_the_flag_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qwen(tmp_path / "m", auto_map={"AutoConfig": "configuration.Config"})
    assert validate("--model", str(folder), "--num-stages", "2") == 0
    assert "serving it takes --trust-remote-code" in capsys.readouterr().out


def test_an_exported_stage_is_told_from_a_full_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, out = qwen(tmp_path / "m"), tmp_path / "out"
    assert main(["export", "--model", str(full), "--num-stages", "2", "--output-dir", str(out)]) == 0
    capsys.readouterr()
    stage = str(out / "stage_1")
    assert validate("--model", stage) == validate("--model", stage, "--ranges", "0-3,3-6") == 0
    said = capsys.readouterr().out
    assert "✓ Exported as stage 1 of 2, " in said and "  Stage 1: [ 3- 6)  ( 3 layers)" in said
    assert validate("--model", stage, "--num-stages", "3") == 1
    assert "stage 1: the folder was exported as one of 2 stages, not of 3" in capsys.readouterr().out
    assert validate("--model", stage, "--ranges", "0-4", "4-6") == 1
    assert "stage 1: the folder was exported with layers 3-6, not 4-6" in capsys.readouterr().out


def test_help_shows_examples_and_a_terminal_without_unicode_gets_no_traceback() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "zmqpp", "validate", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    shown = run("--help")
    assert (
        shown.returncode == 0 and "zmqpp validate --model /path/to/Llama-3-8B --num-stages 4" in shown.stdout
    )
    plain = run("--total-layers", "4", "--num-stages", "2")
    assert plain.returncode == 0 and "? Configuration is VALID" in plain.stdout
