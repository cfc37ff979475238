"""Each mistake ends soon, in a non-zero exit and one line that says what, where and what to do; no traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving import FLAGS
from tests.integration.zygote import Ended, Zygote
from zmqpp import control
from zmqpp.models import docs_llama
from zmqpp.pipeline.ports import free_base_port
from zmqpp.transport import Link, Route
from zmqpp.vllm import compat, identity

EXTERNAL = ("--pipeline-stage-mode", "external")


@pytest.fixture(scope="module")
def port() -> int:
    return free_base_port(4)


def stage(index: int, total: int, port: int, /, **changes: str | None) -> list[str]:
    """The documented flags of one stage, with some changed, or left out when None."""
    flags: dict[str, str | None] = {
        "--pipeline-stage-mode": "external",
        "--pipeline-stage-idx": str(index),
        "--pipeline-total-stages": str(total),
        "--pipeline-local-bind-port": str(port + (total if index == total - 1 else index)),
    }
    if index == 0:
        flags |= {"--pipeline-prev-stage-addr": f"127.0.0.1:{port + total}", "--port": str(port + total + 1)}
    else:
        flags |= {
            "--pipeline-prev-stage-service-addr": f"127.0.0.1:{port + index - 1}",
            "--external-pp-worker": "",
        }
    flags |= {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in flags.items() if value is not None for word in (name, value) if word]
    return [*words, "--tensor-parallel-size", "1"] if "--tensor-parallel-size" not in flags else words


def assert_one_line(ended: Ended, *parts: str) -> None:
    assert ended.code not in (0, None), ended
    assert "Traceback" not in ended.output, ended.output
    lines = [line for line in ended.output.splitlines() if line.startswith("zmqpp: error: ")]
    assert len(lines) == 1, ended.output
    for part in parts:
        assert part in lines[0], lines[0]


FLAG_MISTAKES: dict[str, tuple[int, dict[str, str | None], tuple[str, ...]]] = {
    "no index": (1, {"pipeline_stage_idx": None}, ("needs --pipeline-stage-idx",)),
    "no total": (1, {"pipeline_total_stages": None}, ("needs --pipeline-total-stages",)),
    "no bind port": (1, {"pipeline_local_bind_port": None}, ("needs --pipeline-local-bind-port",)),
    "no previous address": (
        1,
        {"pipeline_prev_stage_service_addr": None},
        ("stage 1 needs --pipeline-prev-stage-service-addr",),
    ),
    "no return address": (
        0,
        {"pipeline_prev_stage_addr": None},
        ("stage 0 needs --pipeline-prev-stage-addr",),
    ),
    "no mode": (1, {"pipeline_stage_mode": None}, ("has no effect without --pipeline-stage-mode external",)),
    "internal mode": (
        1,
        {"pipeline_stage_mode": "internal"},
        ("has no effect without --pipeline-stage-mode external",),
    ),
    "index too high": (1, {"pipeline_stage_idx": "2"}, ("--pipeline-stage-idx 2 is out of range", "0 to 1")),
    "index negative": (1, {"pipeline_stage_idx": "-1"}, ("--pipeline-stage-idx -1 is out of range",)),
    "unknown compression": (
        0,
        {"pipeline_compression": "fp7"},
        ("--pipeline-compression 'fp7': give one of none, fp8, int8",),
    ),
    "one stage": (0, {"pipeline_total_stages": "1"}, ("at least 2 stages",)),
    "worker flag on stage 0": (
        0,
        {"external_pp_worker": ""},
        ("--external-pp-worker is for stages 1 and up",),
    ),
    "no worker flag": (1, {"external_pp_worker": None}, ("stage 1 needs --external-pp-worker",)),
    "return address on stage 1": (
        1,
        {"pipeline_prev_stage_addr": "127.0.0.1:9"},
        ("--pipeline-prev-stage-addr is for stage 0",),
    ),
    "service address on stage 0": (
        0,
        {"pipeline_prev_stage_service_addr": "127.0.0.1:9"},
        ("for stages 1 and up",),
    ),
    "alias and flag": (1, {"pipeline_next_stage_addr": "127.0.0.1:9"}, ("deprecated alias", "give only")),
    "alias and port": (1, {"pipeline_local_listen_port": "9"}, ("deprecated alias", "give only")),
    "pipeline parallel size": (0, {"pipeline_parallel_size": "2"}, ("--pipeline-parallel-size contradicts",)),
    "executor": (
        0,
        {"distributed_executor_backend": "mp"},
        ("--distributed-executor-backend mp contradicts",),
    ),
    "headless": (0, {"headless": ""}, ("--headless contradicts stage 0",)),
    "same port twice": (0, {"port": "15550", "pipeline_local_bind_port": "15550"}, ("both 15550",)),
    "data parallel": (
        0,
        {"data_parallel_size": "2"},
        ("--data-parallel-size 2: a stage is one of a single pipeline; `zmqpp serve MODEL",),
    ),
    "decode context parallel": (
        1,
        {"decode_context_parallel_size": "2"},
        ("--decode-context-parallel-size 2 is not supported",),
    ),
    "a connector": (
        0,
        {"kv_transfer_config": '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'},
        ("connectors are not supported with external stages",),
    ),
    "weights from a trainer": (
        0,
        {"weight_transfer_config": '{"backend": "nccl"}'},
        ("--weight-transfer-config is not supported with external stages",),
    ),
    "port not a number": (1, {"pipeline_local_bind_port": "http"}, ("--pipeline-local-bind-port", "http")),
    "port too high": (1, {"pipeline_local_bind_port": "70000"}, ("70000",)),
    "address without port": (
        1,
        {"pipeline_prev_stage_service_addr": "127.0.0.1"},
        ("--pipeline-prev-stage-service-addr", "127.0.0.1"),
    ),
    "unresolvable address": (
        1,
        {"pipeline_prev_stage_service_addr": "no-such-host.invalid:15550"},
        ("no-such-host.invalid",),
    ),
    "address of another machine": (1, {"pipeline_local_bind_port": "192.0.2.1:15550"}, ("192.0.2.1",)),
    "range backwards": (1, {"pipeline_layer_range": "8-4"}, ("8-4",)),
    "range empty": (1, {"pipeline_layer_range": "4-4"}, ("4-4",)),
    "range unreadable": (1, {"pipeline_layer_range": "four"}, ("'four'", "A-B")),
    "range beyond the model": (1, {"pipeline_layer_range": "4-12"}, ("4-12", "8 layers")),
}


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_a_wrong_flag_ends_in_one_line(zygote: Zygote, port: int, name: str) -> None:
    index, changes, parts = FLAG_MISTAKES[name]
    ended = zygote.run(["serve", str(docs_llama()), *stage(index, 2, port, **changes), *FLAGS])
    assert_one_line(ended, *parts)


def test_a_port_in_use_names_the_process_that_has_it(zygote: Zygote, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = str(taken.getsockname()[1])
        ended = zygote.run(
            ["serve", str(docs_llama()), *stage(1, 2, port, pipeline_local_bind_port=busy), *FLAGS]
        )
    assert_one_line(ended, f"port {busy}", "in use", f"pid {os.getpid()}")


def test_an_http_port_in_use_is_named(zygote: Zygote, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = str(taken.getsockname()[1])
        flags = [*stage(0, 2, port, port=busy), "--host", "127.0.0.1"]
        ended = zygote.run(["serve", str(docs_llama()), *flags, *FLAGS])
    assert_one_line(ended, "stage 0's HTTP server", f"port {busy}", "in use", "pid")


def test_a_stage_that_would_receive_from_itself_is_refused(zygote: Zygote, port: int) -> None:
    flags = stage(1, 2, port, pipeline_prev_stage_service_addr=f"127.0.0.1:{port + 2}")
    assert_one_line(zygote.run(["serve", str(docs_llama()), *flags, *FLAGS]), "stage 1", "its own port")


@pytest.mark.parametrize("index", [0, 1])
def test_a_model_directory_that_is_not_there_is_named(zygote: Zygote, port: int, index: int) -> None:
    ended = zygote.run(["serve", "/no/such/model", *stage(index, 2, port), *FLAGS])
    assert_one_line(ended, "there is no model directory /no/such/model")


def test_a_timeout_that_is_no_number_is_named(zygote: Zygote, port: int) -> None:
    arguments = ["serve", str(docs_llama()), *stage(1, 2, port), *FLAGS]
    ended = zygote.run(arguments, {"ZMQPP_STARTUP_TIMEOUT_S": "soon"})
    assert_one_line(ended, "ZMQPP_STARTUP_TIMEOUT_S='soon'")


def test_options_given_twice_are_refused(zygote: Zygote, port: int) -> None:
    flags = [*stage(0, 2, port), "--additional-config", '{"zmqpp": {}}']
    assert_one_line(
        zygote.run(["serve", str(docs_llama()), *flags, *FLAGS]), "--additional-config", "leave it out"
    )


def test_a_stage_that_never_came_up_is_named_by_those_who_wait_for_it(zygote: Zygote, port: int) -> None:
    model = str(docs_llama())
    third = zygote.start(["serve", model, *stage(2, 3, port), *FLAGS])
    first = zygote.start(["serve", model, *stage(0, 3, port), *FLAGS])
    for waiting in (third, first):
        waiting.await_line("waiting for")
    first.await_line("waiting for the ring")
    second = zygote.start(["serve", model, *stage(1, 3, port, pipeline_layer_range="4-12"), *FLAGS])
    for running in (second, third, first):
        assert_one_line(running.wait(80), "stage 1: layer range 4-12 exceeds the model")


def test_the_flags_are_explained_in_the_help(zygote: Zygote) -> None:
    ended = zygote.run(["serve", "--help=PipelineStages"])
    assert ended.code == 0
    for flag in ("--pipeline-stage-mode", "--pipeline-prev-stage-service-addr", "--external-pp-worker"):
        assert flag in ended.output


def test_an_unsupported_vllm_is_named(zygote: Zygote, port: int, tmp_path: Path) -> None:
    metadata = tmp_path / "vllm-0.12.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.12.0\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    (tmp_path / "sitecustomize.py").write_text(code)
    check = "from zmqpp.vllm import compat; compat.check_vllm()"
    result = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "vLLM 0.12.0 is not supported by this zmqpp" in result.stderr


def copy_model(folder: Path, **changes: object) -> Path:
    shutil.copytree(docs_llama(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def pair(
    zygote: Zygote,
    first: list[str],
    second: list[str],
    within_s: float = 120.0,
    environment: dict[str, str] | None = None,
) -> tuple[Ended, Ended]:
    """Two stages that do not fit together, started at once; the clock runs from there."""
    running = [zygote.start(["serve", *first]), zygote.start(["serve", *second], environment)]
    return running[0].wait(within_s), running[1].wait(within_s)


def test_ranges_that_do_not_fit_end_both_stages(zygote: Zygote, port: int) -> None:
    model = str(docs_llama())
    ended = pair(
        zygote,
        [model, *stage(0, 2, port, pipeline_layer_range="0-3"), *FLAGS],
        [model, *stage(1, 2, port, pipeline_layer_range="4-8"), *FLAGS],
    )
    for each in ended:
        assert_one_line(each, "gap", "layers 3-4", "stage 0 (0-3)", "stage 1 (4-8)")


def test_different_models_end_both_stages(zygote: Zygote, port: int, tmp_path: Path) -> None:
    other = copy_model(tmp_path / "other", rms_norm_eps=1e-5)
    ended = pair(
        zygote, [str(docs_llama()), *stage(0, 2, port), *FLAGS], [str(other), *stage(1, 2, port), *FLAGS]
    )
    for each in ended:
        assert_one_line(each, "stage 1", "different model", "rms_norm_eps")


HELLOS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "another total": ({"total_stages": 3}, (), ("--pipeline-total-stages 2", "stage 0 with 3")),
    "another protocol": ({"protocol": 99}, (), ("stage 0 speaks 99", "install one zmqpp version")),
    "another vLLM": ({"vllm_version": "0.12.0"}, (), ("stage 0 runs 0.12.0", "install the same on both")),
    "another patch of vLLM, with other steps": (
        {"vllm_version": f"{compat.minor(compat.vllm_version())}.99", "objects": "of another vLLM"},
        (),
        ("stage 0 runs", ".99", "install the same on both"),
    ),
    "other weights": (
        {
            "weights": {
                name: (header, "0")
                for name, (header, _) in identity.sample_weights(str(docs_llama())).items()
            }
        },
        (),
        ("different model", "model.safetensors", "other contents"),
    ),
    "another length": (
        {"settings": {"max_model_len": 1024}},
        ("--max-model-len", "512"),
        ("--max-model-len 512", "stage 0 runs with 1024"),
    ),
    "another seed": (
        {"settings": {"seed": 7}},
        ("--seed", "8"),
        ("--seed 8", "stage 0 runs with 7"),
    ),
}


@pytest.mark.parametrize("name", HELLOS)
def test_a_stage_that_contradicts_stage_0_ends_in_one_line(zygote: Zygote, port: int, name: str) -> None:
    """Stage 0 played by a link that greets as it does, and hears the failure come round."""
    changes, flags, parts = HELLOS[name]
    greeting = {
        "session": "s",
        "epoch": 0,
        "protocol": control.PROTOCOL_VERSION,
        "zmqpp_version": "0.1.0",
        "vllm_version": compat.vllm_version(),
        "total_stages": 2,
        "model": identity.comparable(identity.read_config(str(docs_llama())) or {}),
        "weights": {},
        "settings": {},
        **changes,
    }
    with Link(bind=f"127.0.0.1:{port}", connect=f"127.0.0.1:{port + 2}", name="stage 0") as first:
        running = zygote.start(["serve", str(docs_llama()), *stage(1, 2, port), *flags])
        first.send_control(control.encode(control.Hello(**greeting)), route=Route.REQUEST, timeout_s=60)
        heard = control.decode(first.recv_control(60).body)
        assert_one_line(running.wait(60), "stage 1", *parts)
    assert isinstance(heard, control.Failed)
    assert heard.stage == 1 and all(part in heard.reason for part in parts)


def test_a_missing_tensor_ends_both_stages(zygote: Zygote, port: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = copy_model(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.5.self_attn.q_proj.weight"]
    (broken / "model.safetensors").unlink()
    save_file(tensors, broken / "model.safetensors")
    ended = pair(
        zygote, [str(docs_llama()), *stage(0, 2, port), *FLAGS], [str(broken), *stage(1, 2, port), *FLAGS]
    )
    for each in ended:
        assert_one_line(each, "stage 1", "model.layers.5.self_attn.q_proj.weight")


def test_a_directory_exported_for_another_place_is_refused(zygote: Zygote, port: int, tmp_path: Path) -> None:
    info = {"stage_idx": 1, "total_stages": 3, "start_layer": 4, "end_layer": 8}
    model = copy_model(tmp_path / "stage", _pipeline_info=info)
    ended = zygote.run(["serve", str(model), *stage(1, 2, port), *FLAGS])
    assert_one_line(ended, "exported with total_stages 3", "--pipeline-total-stages says 2")


def test_ranks_that_cannot_share_the_heads_are_refused(zygote: Zygote, port: int) -> None:
    words = stage(0, 2, port, tensor_parallel_size="4")
    ended = zygote.run(["serve", str(docs_llama()), *words, *FLAGS])
    assert_one_line(
        ended, "vLLM refuses this configuration", "attention heads (6)", "tensor parallel size (4)"
    )


def test_an_address_that_leads_to_the_wrong_stage_is_named(zygote: Zygote, port: int) -> None:
    own = f"localhost:{port + 2}"
    flags = stage(1, 2, port, pipeline_prev_stage_service_addr=own)
    ended = zygote.run(["serve", str(docs_llama()), *flags, *FLAGS])
    assert_one_line(ended, f"tcp://{own} is where stage 1 binds, not stage 0", "check the addresses")


def test_memory_that_is_not_there_ends_both_stages(zygote: Zygote, port: int) -> None:
    model, flags = str(docs_llama()), [*FLAGS, "--kv-cache-memory-bytes", str(1 << 44)]
    ended = pair(zygote, [model, *stage(0, 2, port), *flags], [model, *stage(1, 2, port)])
    assert_one_line(ended[0], "determine_available_memory", "less than requested memory")
    assert ended[1].code not in (0, None)
    assert "less than requested memory" in ended[1].output.rpartition("zmqpp: error: ")[2]


def test_a_length_that_the_cache_cannot_hold_ends_both_stages(zygote: Zygote, port: int) -> None:
    """vLLM's engine finds that out, when the stages have loaded."""
    model, flags = str(docs_llama()), [*FLAGS, "--num-gpu-blocks-override", "8"]
    ended = pair(zygote, [model, *stage(0, 2, port), *flags], [model, *stage(1, 2, port), *flags])
    assert_one_line(ended[0], "vLLM refuses this configuration", "max seq len (1024)")
    assert ended[1].code not in (0, None)
    assert "max seq len (1024)" in ended[1].output.rpartition("zmqpp: error: ")[2]


def test_external_mode_alone_says_what_is_missing(zygote: Zygote) -> None:
    assert_one_line(zygote.run(["serve", str(docs_llama()), *EXTERNAL]), "needs --pipeline-stage-idx")
