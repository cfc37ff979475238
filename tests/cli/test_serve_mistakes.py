"""Mistakes that `zmqpp serve` finds before it starts anything: one line, exit code 2, no log folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import config_of, large_head, write_model
from tests.cli.command import assert_mistake, zmqpp
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.split import open_split
from zmqpp.errors import ConfigError
from zmqpp.models import docs_llama
from zmqpp.vllm import identity

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
        ("MODEL --balance compute --ranges 0-4 4-8", "--balance chooses the ranges: leave --ranges out"),
        ("--pipeline-dir SPLIT --balance memory", "--balance: a split model has its ranges already"),
        ("MODEL --base-port 70000", "within 1..65535"),
        ("MODEL --port 15550", "--port 15550 is also a port of the ring"),
        ("MODEL --api-port 15551", "lies within the ring's ports"),
        ("MODEL --pipeline-stage-idx 1", "--pipeline-stage-idx follows from the plan"),
        ("MODEL --served-model-name x", "--served-model-name follows from the plan: give --name"),
        ("MODEL --pipeline-compression fp7", "--pipeline-compression 'fp7': give one of none, fp8, int8"),
        ("MODEL --timeout 0", "--timeout must be above 0"),
        ("MODEL --data-parallel-size 0", "--data-parallel-size 0: give the number of pipelines"),
        ("MODEL -dp -3", "--data-parallel-size -3: give the number of pipelines"),
        ("MODEL --data-parallel-size 1000000", "behind this entry, 1 to 64"),
        ("MODEL --data-parallel-size x", "argument --data-parallel-size/-dp: invalid int value: 'x'"),
        ("MODEL --num-stages 8 -dp 64", "--data-parallel-size 64: 64 x 8 stages take at least"),
        ("MODEL -dp 2 --port 15553", "--port 15553 is also a port of the ring"),
        ("MODEL -dp 2 --api-port 15549", "port 15550 would be both of a ring"),
        ("MODEL -dp 2 --base-port 65531", "within 1..65535"),
        ("MODEL -dp 2 --api-port 65535", "API port 65536"),
        ("MODEL -- --data-parallel-size 2", "give it before `--`: zmqpp starts the replicas"),
        ("MODEL --data_parallel_size 2", "give it before `--`: zmqpp starts the replicas"),
        ("MODEL -- --data-parallel-rank 0", "replicas are pipelines of their own"),
        ("--pipeline-dir /no/such/split", "--pipeline-dir /no/such/split: no such folder"),
        ("--pipeline-dir MODEL", "there is no stage_0 in it; it is a model: give it as MODEL"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: str, words: str) -> None:
    split = tmp_path / "split"
    if "SPLIT" in arguments:
        assert (
            zmqpp("export", "--model", MODEL, "--num-stages", "2", "--output-dir", str(split)).returncode == 0
        )
    refused(tmp_path, words, *arguments.replace("MODEL", MODEL).replace("SPLIT", str(split)).split())


def test_a_balanced_plan_has_fewer_layers_where_the_head_is(tmp_path: Path) -> None:
    from zmqpp.cli import serve_plan

    model = str(write_model(tmp_path / "m", config_of(6), large_head(6)))
    (plan,) = serve_plan.serve_plans(parsed(["--num-stages", "2", "--balance", "compute"]), model, [])
    assert [str(layers) for layers in plan.ranges] == ["0-4", "4-6"]
    (even,) = serve_plan.serve_plans(parsed(["--num-stages", "2"]), model, [])
    assert even.ranges == []


def test_a_busy_port_is_named_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        refused(tmp_path, f"--api-port: port {port}", MODEL, "--api-port", port)
        refused(tmp_path, f"--base-port: port {port}", MODEL, "--base-port", port)
        refused(tmp_path, f"port {port} is in use by pid {os.getpid()}", MODEL, "--port", port)


def test_a_busy_port_of_any_replica_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused(tmp_path, f"--api-port: port {port}", MODEL, "-dp", "2", "--api-port", str(port - 1))
        refused(tmp_path, f"--base-port: port {port}", MODEL, "-dp", "2", "--base-port", str(port - 3))


def test_replicas_share_ports_cores_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zmqpp.cli import serve_plan
    from zmqpp.pipeline import cores, devices, room

    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", cores.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(cores, "cpu_limit", lambda: None)
    for module in (devices, room):
        monkeypatch.setattr(module, "available_bytes", lambda: 10 << 30)
    words = ["--data-parallel-size", "3", "--num-stages", "2", "--base-port", "15600", "--api-port", "15700"]
    plans = serve_plan.serve_plans(parsed(words), MODEL, [])
    assert [[stage.bind_port for stage in plan.stages] for plan in plans] == [
        [15600, 15602],
        [15603, 15605],
        [15606, 15608],
    ]
    assert [plan.api.port for plan in plans] == [15700, 15701, 15702]
    stages = [stage for plan in plans for stage in plan.stages]
    assert {stage.environment["OMP_NUM_THREADS"] for stage in stages} == {"4"}
    share = str(int(0.4 * (10 << 30) / 6))
    assert all(stage.arguments[-2:] == ("--kv-cache-memory-bytes", share) for stage in stages)
    monkeypatch.setattr(serve_plan, "visible_devices", lambda _: [str(n) for n in range(6)])
    gpus = [
        stage.environment["CUDA_VISIBLE_DEVICES"]
        for plan in serve_plan.serve_plans(parsed(words), MODEL, [])
        for stage in plan.stages
    ]
    assert gpus == ["0", "1", "2", "3", "4", "5"]


def test_more_than_the_memory_holds_is_refused_and_more_than_the_cores_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from zmqpp.pipeline import room

    (tmp_path / "model.safetensors").touch()
    os.truncate(tmp_path / "model.safetensors", 3 << 30)
    monkeypatch.setattr(room, "available_bytes", lambda: 10 << 30)
    monkeypatch.setattr(room, "usable_cores", lambda: 4)
    room.check_room(4, 2, [str(tmp_path)], on_gpus=True)
    room.check_room(1, 50, [str(tmp_path)], on_gpus=False)
    room.check_room(2, 2, [str(tmp_path)], on_gpus=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"3 x 2 stages take at least .* \(3 x 3.2 GB of it weights\)"):
        room.check_room(3, 2, [str(tmp_path)], on_gpus=False)
    room.check_room(2, 3, ["some/hub-id"], on_gpus=False)
    room.warn_of_cores(1, 8)
    room.warn_of_cores(2, 2)
    assert capsys.readouterr().err == ""
    room.warn_of_cores(2, 3)
    assert "2 x 3 stages share 4 cores: they take turns" in capsys.readouterr().err


def parsed(words: list[str]) -> argparse.Namespace:
    from zmqpp.cli import serve

    parser = argparse.ArgumentParser()
    serve.add_to(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


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


def test_stages_of_two_models_are_not_one_split(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(docs_llama(), other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    for model, out in ((MODEL, "one"), (str(other), "two")):
        made = zmqpp("export", "--model", model, "--num-stages", "2", "--output-dir", str(tmp_path / out))
        assert made.returncode == 0, made.stderr
    shutil.rmtree(tmp_path / "one" / "stage_1")
    shutil.copytree(tmp_path / "two" / "stage_1", tmp_path / "one" / "stage_1")
    refused(tmp_path, "was exported from another model", "--pipeline-dir", str(tmp_path / "one"))
    # On its own machine a stage has nothing to compare with but what stage 0 says.
    stage_0 = identity.sample_weights(str(tmp_path / "two" / "stage_0"))
    identity.check_same_weights(str(tmp_path / "one" / "stage_1"), stage_0, 1)
    with pytest.raises(ConfigError, match="exported from a different model than stage 0's"):
        identity.check_same_weights(str(tmp_path / "one" / "stage_0"), stage_0, 1)


def test_a_command_line_in_a_message_stays_on_its_line(tmp_path: Path) -> None:
    code = "import socket, time\nserver = socket.create_server(('127.0.0.1', 0))\n"
    code += "print(server.getsockname()[1], flush=True)\ntime.sleep(60) # \x1b[2J"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        port = holder.stdout.readline().strip()
        refused(
            tmp_path, f"port {port} on 127.0.0.1 is in use by pid {holder.pid}", MODEL, "--api-port", port
        )
        holder.kill()
