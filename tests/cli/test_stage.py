"""`zmqpp stage` prints the documented multi-machine plan, or becomes one stage of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.command import ROOT, assert_mistake, zmqpp
from zmqpp.models import docs_llama

FOUR = "192.168.1.10,192.168.1.11,192.168.1.12,192.168.1.13"


def flags(words: list[str]) -> dict[str, str]:
    """`--flag value` pairs after `vllm serve MODEL`; a flag without a value maps to nothing."""
    after = [*words[3:], "--"]
    return {
        word: "" if following.startswith("--") else following
        for word, following in pairwise(after)
        if word.startswith("--")
    }


def commands(printed: str) -> dict[str, list[str]]:
    """Comment line -> words of the command below it, as a shell splits them."""
    blocks = [block.partition("\n") for block in printed.strip().split("\n\n")]
    return {comment: shlex.split(command.replace("\\\n", " ")) for comment, _, command in blocks}


def test_the_plan_of_four_machines_has_the_documented_flags() -> None:
    done = zmqpp(
        *("stage", "--print", "--all", "--hosts", FOUR, "--model", "/path/to/Llama-3-8B"),
        *("--ranges", "0-8", "8-16", "16-24", "24-32"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    plan = commands(done.stdout)
    assert list(plan) == [f"# 192.168.1.1{i}: stage {i}" for i in range(4)]
    assert all(words[:3] == ["vllm", "serve", "/path/to/Llama-3-8B"] for words in plan.values())
    first, second, _, last = (flags(words) for words in plan.values())
    common = {
        "--pipeline-stage-mode": "external",
        "--pipeline-total-stages": "4",
        "--tensor-parallel-size": "1",
    }
    assert first == {
        **common,
        "--pipeline-stage-idx": "0",
        "--pipeline-layer-range": "0-8",
        "--pipeline-local-bind-port": "192.168.1.10:15550",
        "--pipeline-prev-stage-addr": "192.168.1.13:15554",
        "--port": "8000",
    }
    assert second == {
        **common,
        "--pipeline-stage-idx": "1",
        "--pipeline-layer-range": "8-16",
        "--pipeline-local-bind-port": "192.168.1.11:15550",
        "--pipeline-prev-stage-service-addr": "192.168.1.10:15550",
        "--external-pp-worker": "",
    }
    assert last["--pipeline-local-bind-port"] == "192.168.1.13:15554"
    assert last["--pipeline-prev-stage-service-addr"] == "192.168.1.12:15550"


def binds_and_previous(hosts: str, *more: str) -> list[tuple[str, str]]:
    done = zmqpp("stage", "--all", "--json", "--hosts", hosts, "--model", "m", *more)
    assert done.returncode == 0, done.stderr
    found = [flags(stage["argv"]) for stage in json.loads(done.stdout)["stages"]]
    return [
        (
            stage["--pipeline-local-bind-port"],
            stage.get("--pipeline-prev-stage-addr") or stage["--pipeline-prev-stage-service-addr"],
        )
        for stage in found
    ]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("a,a,b", [("a:100", "b:103"), ("a:101", "a:100"), ("b:103", "a:101")]),
        ("a,b,b", [("a:100", "b:103"), ("b:101", "a:100"), ("b:103", "b:101")]),
        ("localhost,127.0.0.1", [("100", "127.0.0.1:102"), ("102", "127.0.0.1:100")]),
        ("fd00::2,[fd00:0::3]", [("[fd00::2]:100", "[fd00::3]:102"), ("[fd00::3]:102", "[fd00::2]:100")]),
    ],
)
def test_stages_of_one_machine_get_ports_of_their_own(hosts: str, expected: list[tuple[str, str]]) -> None:
    assert binds_and_previous(hosts, "--base-port", "100") == expected


def test_exported_stages_gpus_and_flags_for_vllm_are_quoted_for_a_shell() -> None:
    done = zmqpp(
        *(
            "stage",
            "1",
            "--print",
            "--hosts",
            "a,b,b",
            "--pipeline-dir",
            "/my models/out",
            "--gpu-ids",
            "4,5",
        ),
        *(
            "--max-model-len",
            "4096",
            "--",
            "--override-generation-config",
            '{"top_k": 5}',
            "--base-port",
            "x",
        ),
    )
    assert done.returncode == 0, done.stderr
    [(comment, words)] = commands(done.stdout).items()
    assert comment == "# b: stage 1"
    assert words[:4] == ["CUDA_VISIBLE_DEVICES=4", "vllm", "serve", "/my models/out/stage_1"]
    assert words[-6:] == [
        *("--max-model-len", "4096", "--override-generation-config", '{"top_k": 5}', "--base-port", "x")
    ]
    last = zmqpp("stage", "2", "--json", "--hosts", "a,b,b", "--model", "m", "--gpu-ids", "4,5").stdout
    assert json.loads(last)["stages"][0]["environment"] == {"CUDA_VISIBLE_DEVICES": "5"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("0 --hosts a,b", "give either --model MODEL, or --pipeline-dir DIR"),
        ("0 --hosts a,b --model m --pipeline-dir d", "give either --model MODEL, or --pipeline-dir DIR"),
        ("0 --model m", "required: --hosts"),
        ("0 --model m --hosts", "--hosts: expected one argument"),
        ("0 --model m --hosts a", "--hosts names 1 host"),
        ("0 --model m --hosts a,,b", "the entry of stage 1 is empty"),
        ("0 --model m --hosts a,b:15550", "'b:15550' (stage 1) has a port; give b alone"),
        ("0 --model m --hosts a,b!", "'b!' (stage 1) is no host name or IP address"),
        ("0 --model m --hosts a,fd00::zz", "'fd00::zz' (stage 1) is no host name or IP address"),
        ("0 --model m --hosts a,0.0.0.0", "0.0.0.0 (stage 1) means every address"),
        ("0 --model m --hosts 10.0.0.1,127.0.0.1", "stage 1 is at 127.0.0.1, where only its own machine"),
        ("2 --model m --hosts a,b", "stage 2: --hosts names 2 machines, so stages are 0 to 1"),
        ("-- --dtype float32", "required: --hosts"),
        ("one --model m --hosts a,b", "stage 'one': a stage's index is a number from 0 to 1"),
        ("--model m --hosts a,b", "which stage?"),
        ("--model m --hosts a,b --all", "--all prints the plan: add --print or --json"),
        ("1 --model m --hosts a,b --all --print", "either the stage 1 or --all"),
        ("0 --model m --hosts a,b --base-port 65534", "all must lie within 1..65535"),
        ("0 --model m --hosts a,b --base-port 0", "all must lie within 1..65535"),
        ("0 --model m --hosts a,b --base-port x", "invalid int value: 'x'"),
        ("0 --model m --hosts a,b --api-port 70000", "API port 70000: must lie within 1..65535"),
        ("0 --model m --hosts a,b --api-port 15550", "API port 15550 is also where stage 0 binds on a"),
        ("0 --model m --hosts a,b,a --api-port 15553", "API port 15553 is also where stage 2 binds on a"),
        ("0 --model m --hosts a,b --ranges 0-4", "1 layer ranges for 2 stages"),
        ("0 --model m --hosts a,b --ranges 0-4 4-4", "layer range 4-4 is empty"),
        ("0 --model m --hosts a,b --gpu-ids 0,,1", "--gpu-ids '0,,1'"),
        ("0 --model m --hosts a,b --port 80", "--port follows from the plan: give --api-port"),
        ("0 --model m --hosts a,b --pipeline-stage-idx 1", "--pipeline-stage-idx follows from the plan"),
        ("0 stray --model m --hosts a,b", "unexpected 'stray'"),
    ],
)
def test_mistake_in_a_plan_is_one_line_and_exit_code_2(words: str, said: str) -> None:
    assert_mistake(zmqpp("stage", *words.split()), said)


def test_ranges_that_do_not_fit_the_model_are_refused() -> None:
    words = ("stage", "--all", "--print", "--hosts", "a,b", "--model", str(docs_llama()))
    assert_mistake(zmqpp(*words, "--ranges", "0-4", "5-8"), "gap: layers 4-5")
    assert zmqpp(*words, "--ranges", "0-5", "5-8").returncode == 0


@pytest.fixture
def fake_vllm(tmp_path: Path) -> dict[str, str]:
    """An installed "vLLM" that prints what it was started with and then waits to be stopped."""
    folder = tmp_path / "vllm" / "entrypoints" / "cli"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / "main.py").write_text(
        "import json, os, signal, sys\n"
        "print(json.dumps({'pid': os.getpid(), 'argv': sys.argv[1:], 'omp': os.environ.get('OMP_NUM_THREADS')}),"
        " flush=True)\n"
        "signal.pause()\n"
    )
    (tmp_path / "vllm-0.32.0+cpu.dist-info").mkdir()
    (tmp_path / "vllm-0.32.0+cpu.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.32.0+cpu\n")
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    ("hosts", "shared"), [("192.0.2.77,192.0.2.78", False), ("127.0.0.1,127.0.0.1", True)]
)
def test_run_becomes_vllm_itself_with_its_pid_and_its_end(
    fake_vllm: dict[str, str], hosts: str, shared: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with subprocess.Popen(
        [sys.executable, "-m", "zmqpp", "stage", "1", "--model", "m", "--hosts", hosts, "--dtype", "half"],
        env={**environment, **fake_vllm},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == -signal.SIGTERM
    assert told["pid"] == process.pid
    words = " ".join(told["argv"])
    assert told["argv"][:2] == ["serve", "m"] and "--dtype half" in words
    assert ("--kv-cache-memory-bytes" in words) == shared
    assert (told["omp"] is not None) == shared
    assert ("warning: 192.0.2.78 is not an address of this machine (it has " in said) == (not shared)


def test_what_is_wrong_on_the_stages_own_machine_is_told_before_vllm_starts(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(docs_llama(), model)
    words = ["stage", "0", "--hosts", "127.0.0.1,127.0.0.1"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        busy = zmqpp(*words, "--model", str(model), "--base-port", str(port))
        assert_mistake(busy, f"--base-port: port {port} on 127.0.0.1 is in use by pid {os.getpid()}")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    assert_mistake(zmqpp(*words, "--model", str(model)), "add --trust-remote-code")
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").unlink()
    assert_mistake(zmqpp(*words, "--model", str(model)), f"{model} has no weights")
    assert_mistake(zmqpp(*words, "--pipeline-dir", str(tmp_path)), f"no model directory {tmp_path}/stage_0")
