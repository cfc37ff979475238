"""Each stage gets a share of this machine of its own; no GPU is promised that is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmqpp.errors import ConfigError
from zmqpp.pipeline import devices
from zmqpp.pipeline.devices import memory_flags, parse_gpu_ids, stage_environment, visible_devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two GPUs, as a fake nvidia-smi has it, and no variables of the user's."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: a)'\necho 'GPU 1: Two (UUID: b)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_taken_in_turn_unless_the_user_names_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "version", lambda _: "0.32.0")
    assert visible_devices() == visible_devices("cuda") == ["0", "1"]
    taken = [stage_environment(index, 3, ["0", "1"])["CUDA_VISIBLE_DEVICES"] for index in range(3)]
    assert taken == ["0", "1", "0"]
    assert stage_environment(1, 2, ["0", "1"], ["2", "3"])["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert visible_devices() == ["5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU is visible"):
        visible_devices("cuda")
    with pytest.raises(ConfigError, match="--device cpu: the vLLM installed here is built for CUDA"):
        visible_devices("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_a_vllm_for_the_cpu_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "version", lambda _: "0.32.0+cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert visible_devices() == visible_devices("cpu") == []
    with pytest.raises(ConfigError, match="--device cuda: the vLLM installed here is the CPU's"):
        visible_devices("cuda")


def test_each_rank_of_a_stage_takes_a_gpu_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    four = ["0", "1", "2", "3"]
    taken = [stage_environment(i, 3, four, ranks=2)["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert taken == ["0,1", "2,3", "0,1"]
    with pytest.raises(
        ConfigError, match="each rank of a stage needs a GPU of its own, and there are 1 here"
    ):
        stage_environment(0, 2, four, ["2"], ranks=2)


def test_stages_share_the_memory_of_what_they_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(devices, "available_bytes", lambda: 10 << 30)
    assert memory_flags(2, ["0", "1"], ()) == ()
    assert memory_flags(3, ["0", "1"], ()) == ("--gpu-memory-utilization", "0.450")
    assert memory_flags(2, ["0"], (), cache_is_given=True) == ("--gpu-memory-utilization", "0.250")
    assert memory_flags(2, ["0"], ("--kv-cache-memory-bytes=9",)) == ("--gpu-memory-utilization", "0.250")
    assert memory_flags(2, ["0"], ("--gpu-memory-utilization", "0.3")) == ()
    assert memory_flags(4, [], ()) == ("--kv-cache-memory-bytes", str(1 << 30))
    assert memory_flags(4, [], ("--kv-cache-memory-bytes", "9")) == ()
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert memory_flags(4, [], ()) == ()


@pytest.mark.parametrize("text", ["", "0,", ",", "0,,1"])
def test_gpus_are_a_list(text: str) -> None:
    assert parse_gpu_ids(None) == [] and parse_gpu_ids(" 0, 2") == ["0", "2"]
    with pytest.raises(ConfigError, match="give GPUs with commas between"):
        parse_gpu_ids(text)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device 'tpu'"):
        visible_devices("tpu")
