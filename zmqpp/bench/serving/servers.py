"""What serves? One vLLM process, vLLM's own pipeline parallelism, zmqpp over each lane: all on the same cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from zmqpp.checkpoint.balance import balanced_ranges
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.errors import LaunchError
from zmqpp.pipeline.cores import core_environment
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import free_base_port
from zmqpp.pipeline.process import StageProcess
from zmqpp.pipeline.stage_log import clear_line

__all__ = ["NAME", "SETUPS", "Setup", "serve"]

NAME = "model"
READY_S = 900.0
_BALANCED = ("--scheduler-cls", "zmqpp.vllm.batches.BalancedScheduler")
_NO_USAGE = {"VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Setup:
    """`stages` processes that compute; of zmqpp's where `lane` is not empty.

    `lent`: vLLM's own stages, too, compute with all cores, each in its turn, where else each has its part of them.
    """

    name: str
    title: str
    stages: int
    lane: str = ""
    flags: tuple[str, ...] = ()
    lent: bool = True
    balance: bool = False
    """Fewer layers where the head is."""


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("one", "one vLLM process", 1),
        Setup("vllm", "vLLM's own -pp 2", 2, lent=False),
        Setup("vllm-balanced", "vLLM's -pp 2, zmqpp's batches", 2, flags=_BALANCED, lent=False),
        Setup("vllm-lent", "vLLM's -pp 2, cores lent", 2),
        Setup("shm", "zmqpp, 2 stages, shm", 2, "shm"),
        Setup("shm-divided", "zmqpp, shm, cores divided", 2, "shm", lent=False),
        Setup("shm-balanced", "the same, balanced layers", 2, "shm", lent=False, balance=True),
        Setup("tcp", "zmqpp, 2 stages, tcp", 2, "tcp"),
        Setup("shm-4", "zmqpp, 4 stages, shm", 4, "shm"),
        Setup("tcp-4", "zmqpp, 4 stages, tcp", 4, "tcp"),
    )
}


@contextmanager
def serve(setup: Setup, model: Path, flags: Sequence[str], logs: Path) -> Iterator[tuple[str, float]]:
    """Yields the URL, and the seconds it took until it was ready.

    Raises:
        LaunchError: it does not come up.
    """
    started = time.monotonic()
    serving = _pipeline if setup.lane else _vllm
    with serving(setup, model, (*flags, *setup.flags), logs) as url:
        yield url, time.monotonic() - started


@contextmanager
def _pipeline(setup: Setup, model: Path, flags: Sequence[str], logs: Path) -> Iterator[str]:
    base = free_base_port(setup.stages + 2)
    cores = core_environment(setup.stages, lends=setup.lent)
    ranges = balanced_ranges(Checkpoint.open(str(model)), setup.stages, "compute") if setup.balance else ()
    plan = PipelinePlan(
        model=str(model),
        total=setup.stages,
        base_port=base,
        api=ApiEndpoint("127.0.0.1", base + setup.stages + 1, NAME),
        ranges=ranges,
        arguments=tuple(flags),
        environments=[{**_NO_USAGE, **cores, "ZMQPP_LANE": setup.lane}] * setup.stages,
    )
    with Launcher(plan, logs) as launcher:
        launcher.start()
        launcher.wait_ready(READY_S)
        yield plan.api.url


@contextmanager
def _vllm(setup: Setup, model: Path, flags: Sequence[str], logs: Path) -> Iterator[str]:
    logs.mkdir(parents=True, exist_ok=True)
    port = free_base_port(1)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    command += ["--pipeline-parallel-size", str(setup.stages), *flags]
    # Model Runner V1, as behind zmqpp: what is compared is the pipeline.
    environment = {**_NO_USAGE, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    if setup.lent and setup.stages > 1:
        environment |= core_environment(setup.stages, lends=True)
    else:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _binding(setup.stages)
    process = StageProcess(logs / "vllm.log")
    process.start(command, environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _await(url, process)
        yield url
    finally:
        process.terminate()
        _let_go(process)
        process.reap()


def _binding(stages: int) -> str:
    """This process's cores in equal parts, as VLLM_CPU_OMP_THREADS_BIND takes them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < stages:
        return "nobind"
    parts = (cores[i * len(cores) // stages : (i + 1) * len(cores) // stages] for i in range(stages))
    return "|".join(",".join(map(str, part)) for part in parts)


def _await(url: str, process: StageProcess) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if (code := process.exit_code()) is not None:
            raise LaunchError(f"vLLM ended (exit code {code}): {clear_line(process.log_path)}")
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise LaunchError(f"vLLM was not ready in {READY_S:.0f} s: {clear_line(process.log_path)}")


def _let_go(process: StageProcess, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while process.exit_code() is None and time.monotonic() < deadline:
        time.sleep(0.1)
