"""Real servers for the tests: ordinary vLLM in one process, and pipelines through the product's launcher."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.forked import Forked, fork, forked_stages
from tests.integration.zygote import ENVIRONMENT, Zygote
from zmqpp.layers import LayerRange
from zmqpp.models import docs_llama
from zmqpp.pipeline.launcher import Launcher
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import free_base_port
from zmqpp.pipeline.process import spawn

NAME = "model"
FLAGS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32"),
    *("--max-num-batched-tokens", "256", "--kv-cache-memory-bytes", str(128 << 20), "--block-size", "32"),
)
READY_S = 240.0
LONG = bool(os.environ.get("ZMQPP_LONG"))
long_only = pytest.mark.skipif(not LONG, reason="takes minutes: ZMQPP_LONG=1")


@dataclass
class Served:
    """A server that answers on `url`."""

    url: str
    launcher: Launcher | None = None
    log_dir: Path | None = None

    def complete(self, body: Mapping[str, Any], timeout_s: float = 120.0) -> dict[str, Any]:
        # No TLS here: loading certificates would take longer than a short answer.
        asked = {"model": NAME, **body}
        response = httpx.post(f"{self.url}/v1/completions", json=asked, timeout=timeout_s, verify=False)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def generated_tokens(self) -> float:
        """By vLLM's own count, since stage 0 started."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:generation_tokens_total")
        )

    def answers(
        self, cases: Mapping[str, Mapping[str, Any]], at_once: int = 1, timeout_s: float = 120.0
    ) -> dict[str, Any]:
        """What each case is answered, `at_once` of them in flight."""
        with ThreadPoolExecutor(at_once) as pool:
            results = pool.map(lambda body: essence(self.complete(body, timeout_s)), cases.values())
            return dict(zip(cases, results, strict=True))


def essence(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must be equal; logprobs are rounded, as float32 sums depend on how rows were batched."""
    return [
        {
            "text": choice["text"],
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice["stop_reason"],
            "logprobs": _rounded(choice["logprobs"]),
            "prompt_logprobs": _rounded(choice["prompt_logprobs"]),
        }
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
    ]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


@contextmanager
def one_process(
    log: Path,
    model: Path | None = None,
    flags: Iterable[str] = FLAGS,
    environment: Mapping[str, str] | None = None,
    zygote: Zygote | None = None,
) -> Iterator[Served]:
    """An ordinary `vllm serve` without any flag of ours; a fork of `zygote`, if there is one."""
    port = free_base_port(1)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model or docs_llama())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME, *flags]
    with log.open("wb") as out:
        start = spawn if zygote is None else partial(fork, zygote)
        process = start(command, out.fileno(), {**os.environ, **ENVIRONMENT, **(environment or {})})
    try:
        _await_health(f"http://127.0.0.1:{port}", process, log)
        yield Served(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_health(url: str, process: Forked | subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(f"vLLM did not come up:\n{log.read_text()[-3000:]}")


@contextmanager
def pipeline(
    log_dir: Path,
    stages: int,
    ranges: str = "",
    model: Path | None = None,
    flags: Iterable[str] = FLAGS,
    environment: Mapping[str, str] | None = None,
    models: Iterable[Path] = (),
    ranks: Iterable[int] = (),
    ready_s: float = READY_S,
    zygote: Zygote | None = None,
) -> Iterator[Served]:
    """N external stages of a model, started as the documents say.

    Args:
        ranks: the tensor-parallel size of each.
        zygote: what forks them; else each imports vLLM anew.
    """
    shutil.rmtree(log_dir, ignore_errors=True)
    base = free_base_port(stages + 2)
    plan = PipelinePlan(
        model=str(model or docs_llama()),
        total=stages,
        base_port=base,
        api=ApiEndpoint("127.0.0.1", base + stages + 1, NAME),
        ranges=[LayerRange.parse(text) for text in ranges.split()],
        arguments=tuple(flags),
        models=[str(path) for path in models],
        environments=[{**ENVIRONMENT, **(environment or {})}] * stages,
    )
    with Launcher(plan, log_dir) as launcher, forked_stages(zygote):
        for index, size in enumerate(ranks):
            stage = launcher.stage_plans[index]
            words = (*stage.arguments, "--tensor-parallel-size", str(size))
            launcher.stage_plans[index] = replace(stage, arguments=words)
        launcher.start()
        launcher.wait_ready(ready_s)
        yield Served(plan.api.url, launcher, log_dir)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
