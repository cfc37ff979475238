"""Cores and GPUs: enough for the stages here, and not the same ones for two of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from zmqpp.doctor.deployment import Deployment
from zmqpp.doctor.finding import Finding, ok, problem, warning
from zmqpp.doctor.software import installed
from zmqpp.pipeline.cgroup import cpu_limit

__all__ = ["cores", "gpus"]

_QUERY = "index,name,memory.free,memory.total,driver_version"
_ASK_S = 30.0


def cores(deployment: Deployment) -> Iterator[Finding]:
    usable, stages = len(os.sched_getaffinity(0)), len(deployment.here)
    limit = cpu_limit()
    text = f"{usable} usable of {os.cpu_count()}"
    if limit is not None and limit < usable:
        text += f", this container may use {limit:g} of them at a time"
        usable = max(1, int(limit))
    if not _on_cpu():
        yield ok("cores", text)
        return
    if stages > usable:
        text += f", for {stages} stages"
        yield warning("cores", text, "stages take turns on them: run fewer stages here")
    else:
        yield ok("cores", text)
    yield from _binding(stages, usable)


def _binding(stages: int, usable: int) -> Iterator[Finding]:
    """vLLM on the CPU pins its threads to cores; two stages must not be pinned to the same ones."""
    bind, threads = os.environ.get("VLLM_CPU_OMP_THREADS_BIND"), os.environ.get("OMP_NUM_THREADS")
    said = f"VLLM_CPU_OMP_THREADS_BIND={bind or '(unset)'}, OMP_NUM_THREADS={threads or '(unset)'}"
    share = max(1, usable // max(1, stages))
    if stages < 2:
        yield ok("binding", said)
    elif bind is None or bind == "auto":
        text = f"{said}: {stages} stages started by hand would share the same cores"
        remedy = (
            f"export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS={share} "
            "(zmqpp serve, stage, check and demo do so by themselves)"
        )
        yield warning("binding", text, remedy)
    elif threads is not None and threads.isdigit() and int(threads) * stages > usable:
        text = f"{said}: {stages} stages would run {int(threads) * stages} threads on {usable} cores"
        yield warning("binding", text, f"export OMP_NUM_THREADS={share}")
    else:
        yield ok("binding", said)


def gpus(deployment: Deployment) -> Iterator[Finding]:
    listed = _listed()
    if not listed:
        if _on_cpu():
            yield ok("gpus", "none, and the vLLM installed is the CPU's")
        elif installed("vllm"):
            remedy = "install the NVIDIA driver (in a container: --gpus all); or `make build` for the CPU"
            yield problem("gpus", "nvidia-smi finds none, but the vLLM installed is built for CUDA", remedy)
        else:
            yield ok("gpus", "none")
        return
    for index, name, free, total, driver in listed:
        yield ok(f"gpu {index}", f"{name}, {free} of {total} MiB free, driver {driver}")
    yield from _visible(deployment, [row[0] for row in listed])


def _visible(deployment: Deployment, indices: list[str]) -> Iterator[Finding]:
    chosen, count = os.environ.get("CUDA_VISIBLE_DEVICES"), len(indices)
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",") if name.strip()]
        said = f"CUDA_VISIBLE_DEVICES={chosen!r}"
        missing = [name for name in names if name.isdigit() and name not in indices]
        if not names or missing:
            text = f"{said} hides all GPUs" if not names else f"{said} names {missing[0]}, which is not there"
            yield problem("gpus", text, f"unset it, or choose of {', '.join(indices)}")
            return
        count = len(names)
    if count < len(deployment.here):
        text = f"{count} for {len(deployment.here)} stages here: some share one"
        yield warning("gpus", text, "give each stage its share of memory with --gpu-memory-utilization")


def _listed() -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in out.splitlines()]
    return [row for row in rows if len(row) == _QUERY.count(",") + 1]


def _on_cpu() -> bool:
    return "cpu" in (installed("vllm") or "")
