"""`zmqpp check` in a real vLLM: equal tokens, tokens that differ, and a stage that does not load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import zmqpp
from tests.integration.models import split, tiny_qwen3
from zmqpp.models import docs_llama

ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


def test_a_cut_model_with_tied_embeddings_in_several_shards_says_what_the_whole_one_says(
    tmp_path: Path,
) -> None:
    model = str(tiny_qwen3(tmp_path / "qwen3"))
    done = zmqpp(
        *("check", model, "--ranges", "0-3", "3-5", "--against", model, "--json"),
        *("--test-input", "A generator is", "--max-tokens", "8", "--log-dir", str(tmp_path / "logs")),
        environment=ENVIRONMENT,
        timeout_s=280,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["ok"] is True and outcome["difference"] is None
    assert outcome["answer"]["token_ids"] == outcome["expected"]["token_ids"]
    assert len(outcome["answer"]["token_ids"]) == 8
    assert [stage["layers"] for stage in outcome["stages"]] == [[0, 3], [3, 5]]
    assert all(stage["parameters"] > 0 and stage["seconds"] > 0 for stage in outcome["stages"])


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    split(docs_llama(), tmp_path / "split", [(0, 3), (3, 8)])
    return tmp_path / "split"


def test_a_split_of_another_model_is_told_by_its_first_other_token(stages: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(docs_llama(), other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.7.mlp.down_proj.weight"] *= -4
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    done = zmqpp(
        *("check", str(stages), "--against", str(other), "--log-dir", str(tmp_path / "logs")),
        environment=ENVIRONMENT,
        timeout_s=280,
    )
    assert done.returncode == 1, done.stderr
    assert "stage 1: ready, layers 3-8 of 8, 2.36M parameters, 9.4 MB" in done.stdout
    assert "✗ token " in done.stdout and f" in {other}" in done.stdout
    assert "Hello, world!" in done.stdout


def test_a_stage_that_lacks_a_tensor_fails_the_check_in_one_line(stages: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = stages / "stage_1" / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.4.self_attn.o_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    done = zmqpp(
        *("check", str(stages), "--against", str(docs_llama()), "--log-dir", str(tmp_path / "logs")),
        environment=ENVIRONMENT,
        timeout_s=280,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("zmqpp: stage 1 ")
    assert "o_proj" in done.stderr
