"""On what machine, and with which versions, was this measured?"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from zmqpp import _engine

_PACKAGES = (
    "zmqpp",
    "torch",
    "pyzmq",
    "numpy",
    "vllm",
    "nixl",
    "mooncake-transfer-engine",
    "mooncake-transfer-engine-non-cuda",
)


def machine_facts(*devices: torch.device) -> dict[str, Any]:
    """Nothing that names the machine or where things lie on it.

    Args:
        devices: those that are measured; of CUDA devices more is told.
    """
    gpus = list(dict.fromkeys(device for device in devices if device.type == "cuda"))
    return {
        **(_gpu_facts(gpus) if gpus else {}),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "libzmq": _libzmq(),
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def zmqpp_settings() -> dict[str, str]:
    """Environment variables that change what is measured."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)}


_SETTINGS = ("ZMQPP_", "NCCL_", "CUDA_VISIBLE_DEVICES")


def _gpu_facts(devices: list[torch.device]) -> dict[str, Any]:
    from zmqpp.bench.peers.nccl import nccl_version

    first, last = devices[0], devices[-1]
    return {
        "gpus": [torch.cuda.get_device_name(device) for device in devices],
        "gpu_memory_gib": [round(torch.cuda.mem_get_info(device)[1] / 2**30) for device in devices],
        "peer_access": first == last or torch.cuda.can_device_access_peer(first, last),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "engine_reaches_cuda": bool(_engine.describe_cuda()["works"]),
        "nccl": ".".join(str(number) for number in nccl_version()),
    }


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _libzmq() -> str:
    import zmq

    return zmq.zmq_version()


def _commit() -> str:
    """Of the sources that run, with + if they were changed since; empty outside a checkout."""
    try:
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
