"""`zmqpp check`: what cannot be checked is refused in one line, before anything is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import assert_mistake, zmqpp
from zmqpp.models import docs_llama
from zmqpp.pipeline.check import Answer, compare

pytest.importorskip("vllm", reason="the installed vLLM says which device it is for")


def config(**changes: Any) -> str:
    return json.dumps({**json.loads((docs_llama() / "config.json").read_text()), **changes})


def stage_folder(split: Path, index: int, start: int, end: int, total: int = 3) -> None:
    folder = split / f"stage_{index}"
    folder.mkdir(parents=True)
    info = {"stage_idx": index, "total_stages": total, "start_layer": start, "end_layer": end}
    (folder / "config.json").write_text(config(_pipeline_info=info))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Headers of a split into three; nothing that could be loaded."""
    for index, (start, end) in enumerate([(0, 3), (3, 5), (5, 8)]):
        stage_folder(tmp_path / "split", index, start, end)
    return tmp_path / "split"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("/no/such/folder", "/no/such/folder: no such folder"),
        ("MODEL", "is a full model: say how to cut it"),
        ("MODEL --num-stages 1", "give at least 2 stages"),
        ("MODEL --num-stages 3 --ranges 0-4 4-8", "3 stages and 2 ranges"),
        ("MODEL --ranges 0-4 5-8", "gap: layers 4-5"),
        ("MODEL --num-stages 9", "9 stages cannot share 8 layers"),
        ("MODEL --num-stages 2 --max-tokens 0", "--max-tokens 0"),
        ("MODEL --num-stages 2 --against /no/model", "--against: there is no model directory /no/model"),
        ("MODEL --num-stages 2 --port 80", "--port follows from the plan"),
        ("MODEL --num-stages 2 --test-input=", "--test-input is empty"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(words: str, said: str) -> None:
    assert_mistake(zmqpp("check", *words.replace("MODEL", str(docs_llama())).split()), said)


def test_a_folder_that_is_neither_split_nor_model_is_refused(tmp_path: Path) -> None:
    assert_mistake(zmqpp("check", str(tmp_path)), "it is no split and no model")


def test_a_missing_stage_is_named_with_those_that_are_there(split: Path) -> None:
    shutil.rmtree(split / "stage_1")
    said = "a split into 3 stages, but stage_1 is missing (it has stage_0, stage_2)"
    assert_mistake(zmqpp("check", str(split)), said)
    shutil.rmtree(split / "stage_2")
    assert_mistake(zmqpp("check", str(split)), "stage_1, stage_2 are missing (it has stage_0)")


def test_a_split_is_not_cut_once_more(split: Path) -> None:
    assert_mistake(zmqpp("check", str(split), "--num-stages", "2"), "is a split into 3 stages")
    assert_mistake(zmqpp("check", str(split), "--ranges", "0-4", "4-8"), "was split into 0-3 3-5 5-8")


def test_stages_of_two_exports_are_not_taken_for_one(split: Path) -> None:
    shutil.rmtree(split / "stage_1")
    stage_folder(split, 1, 4, 8, total=2)
    assert_mistake(zmqpp("check", str(split)), "stage_1 was exported as stage 1 of 2")
    shutil.rmtree(split / "stage_1")
    stage_folder(split, 1, 3, 4)
    assert_mistake(zmqpp("check", str(split)), "gap: layers 4-5")
    (split / "stage_1" / "config.json").write_text(config())
    assert_mistake(zmqpp("check", str(split)), "has no _pipeline_info")
    (split / "stage_1" / "config.json").write_text("{")
    assert_mistake(zmqpp("check", str(split)), "config.json cannot be read")


def test_a_model_with_code_of_its_own_is_not_started_without_permission(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config(auto_map={"AutoModel": "m.M"}))
    assert_mistake(zmqpp("check", str(tmp_path), "--num-stages", "2"), "add --trust-remote-code")


def test_cuda_is_refused_where_there_is_none(split: Path) -> None:
    refused = zmqpp("check", str(split), "--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert_mistake(refused, "--device cuda: ")


def answer(*ids: int) -> Answer:
    return Answer("", list(ids), [f"<{i}>" for i in ids], [1], [float(i) for i in ids])


def test_the_first_token_that_differs_is_found_also_where_one_side_has_ended() -> None:
    assert compare(answer(1, 2), answer(1, 2)) is None
    difference = compare(answer(1, 5, 3), answer(1, 2, 3))
    assert difference is not None
    assert (difference.index, difference.here, difference.there, difference.margin) == (1, "<5>", "<2>", 2.0)
    longer = compare(answer(1), answer(1, 2))
    assert longer is not None and (longer.index, longer.here, longer.there) == (1, None, "<2>")
    shorter = compare(answer(1, 2), answer(1))
    assert shorter is not None and (shorter.here, shorter.there, shorter.margin) == ("<2>", None, None)
