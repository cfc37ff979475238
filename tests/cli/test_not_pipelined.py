"""Models that vLLM cannot split over stages are refused before anything is written or started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import qwen
from tests.cli.command import assert_mistake, zmqpp

MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "BERT": (
        {"architectures": ["BertModel"]},
        "split BertModel over pipeline stages: its class there does not",
    ),
    "reward": (
        {"architectures": ["Qwen2ForProcessRewardModel"]},
        "split Qwen2ForProcessRewardModel over pipeline stages: its class there puts the reward head behind every",
    ),
    "T5": (
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "split T5ForConditionalGeneration over pipeline stages: it has an encoder and a decoder",
    ),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    settings, words = request.param
    return str(qwen(tmp_path / "model", **settings)), words


@pytest.mark.parametrize("command", ["export", "serve", "check", "stage"])
def test_a_command_refuses_it_in_one_line(command: str, refused: tuple[str, str], tmp_path: Path) -> None:
    model, words = refused
    out = tmp_path / "out"
    arguments = {
        "export": ("--model", model, "--num-stages", "2", "--output-dir", str(out)),
        "serve": (model, "--num-stages", "2", "--log-dir", str(out)),
        "check": (model, "--num-stages", "2", "--log-dir", str(out)),
        "stage": ("1", "--model", model, "--hosts", "127.0.0.1,127.0.0.1"),
    }
    assert_mistake(zmqpp(command, *arguments[command]), words)
    assert not out.exists()


def test_validate_calls_it_invalid(refused: tuple[str, str]) -> None:
    model, words = refused
    done = zmqpp("validate", "--model", model, "--num-stages", "2")
    assert done.returncode == 1 and done.stderr == ""
    assert "✗ Configuration is INVALID" in done.stdout and words in done.stdout


def test_other_decoders_are_not_refused(tmp_path: Path) -> None:
    model = str(qwen(tmp_path / "model", architectures=["NewForCausalLM"], is_encoder_decoder=False))
    assert zmqpp("validate", "--model", model, "--num-stages", "2").returncode == 0
