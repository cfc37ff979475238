"""Mistakes that `zmqpp serve` finds before it starts anything: one line, exit code 2, no log folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.cli.command import assert_mistake, zmqpp
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.split import open_split
from zmqpp.models import docs_llama

MODEL = str(docs_llama())


def refused(tmp_path: Path, words: str, *arguments: str) -> None:
    logs = tmp_path / "logs"
    assert_mistake(zmqpp("serve", *arguments, "--log-dir", str(logs)), words)
    assert not logs.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "give either MODEL"),
        ("MODEL --pipeline-dir x", "give either MODEL"),
        ("/no/such/model", "there is no model directory /no/such/model"),
        ("no-such-model/", "there is no model directory no-such-model/"),
        ("MODEL --num-stages 9", "9 stages cannot share 8 layers"),
        ("MODEL --num-stages 1", "a pipeline needs at least 2 stages"),
        ("MODEL --num-stages 3 --ranges 0-4 4-8", "--num-stages 3 but 2 ranges"),
        ("MODEL --ranges 0-3 4-8", "gap: layers 3-4"),
        ("MODEL --ranges 0-5 4-8", "overlap"),
        ("MODEL --ranges 0:4 4-8", "is not of the form A-B"),
        ("MODEL --base-port 70000", "within 1..65535"),
        ("MODEL --port 15550", "--port 15550 is also a port of the ring"),
        ("MODEL --api-port 15551", "lies within the ring's ports"),
        ("MODEL --pipeline-stage-idx 1", "--pipeline-stage-idx follows from the plan"),
        ("MODEL --served-model-name x", "--served-model-name follows from the plan: give --name"),
        ("MODEL --timeout 0", "--timeout must be above 0"),
        ("--pipeline-dir /no/such/split", "--pipeline-dir /no/such/split: no such folder"),
        ("--pipeline-dir MODEL", "there is no stage_0 in it; it is a model: give it as MODEL"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: str, words: str) -> None:
    refused(tmp_path, words, *arguments.replace("MODEL", MODEL).split())


def test_a_busy_port_is_named_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        refused(tmp_path, f"--api-port: port {port}", MODEL, "--api-port", port)
        refused(tmp_path, f"--base-port: port {port}", MODEL, "--base-port", port)
        refused(tmp_path, f"port {port} is in use by pid {os.getpid()}", MODEL, "--port", port)


def test_foreign_code_and_broken_files_are_found_before_the_start(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(docs_llama(), model)
    (model / "model.safetensors").write_bytes((docs_llama() / "model.safetensors").read_bytes()[:100_000])
    refused(tmp_path, "model.safetensors is truncated", str(model))
    (model / "model.safetensors").unlink()
    refused(tmp_path, f"{model} has no weights, such as model.safetensors", str(model))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    refused(tmp_path, "add --trust-remote-code", str(model))
    (model / "config.json").write_text("{")
    refused(tmp_path, "config.json cannot be read", str(model))


def test_a_split_must_be_whole_and_of_one_export(tmp_path: Path) -> None:
    split = tmp_path / "split"
    made = zmqpp("export", "--model", MODEL, "--pipeline-parallel-size", "3", "--output-dir", str(split))
    assert made.returncode == 0, made.stderr
    opened = open_split(split, 3)
    assert [str(layers) for layers in opened.ranges] == ["0-3", "3-6", "6-8"]
    assert all(Checkpoint.open(str(path)).exported for path in opened.models)
    refused(tmp_path, "is a split into 3 stages", "--pipeline-dir", str(split), "--num-stages", "2")
    refused(tmp_path, "has its ranges already", str(split), "--ranges", "0-4", "4-8")
    shutil.rmtree(split / "stage_1")
    refused(tmp_path, "stage_1 is missing", "--pipeline-dir", str(split))
    shutil.copytree(split / "stage_2", split / "stage_1")
    refused(tmp_path, "was exported as stage 2 of 3", "--pipeline-dir", str(split))
    shutil.rmtree(split / "stage_1")
    (split / ".stage_1.partial").mkdir()
    (split / "pipeline.json").unlink()
    refused(tmp_path, "the export into it is not finished", str(split))
