"""What a stage hears from the one before it in a real pipeline, message by message: taken once, kept in build/fuzz.

Stage 1 of 2 connects to stage 0 through a tap while a few requests are answered. The same messages, said again by
`neighbour.py`, bring a fresh stage 1 up and run its steps.
"""

from __future__ import annotations

import hashlib
import struct
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests.cpp.build import ROOT
from tests.fault.tap import tapped
from tests.fault.zmtp import messages_of
from tests.integration.serving import ENVIRONMENT, FLAGS, NAME, READY_S
from zmqpp.models import docs_llama
from zmqpp.pipeline.plan import ApiEndpoint, PipelinePlan
from zmqpp.pipeline.ports import free_base_port
from zmqpp.pipeline.process import StageProcess
from zmqpp.vllm.compat import vllm_version

FOLDER = ROOT / "build" / "fuzz" / "stage"
STAGE_ENVIRONMENT = {**ENVIRONMENT, "ZMQPP_LANE": "tcp"}
"""The lane over the socket, so that tensors are among the messages."""
_REQUESTS: list[dict[str, Any]] = [
    {"prompt": "The sea", "max_tokens": 6, "temperature": 0},
    {"prompt": "A river of stones", "max_tokens": 5, "temperature": 0.8, "seed": 7, "logprobs": 2, "n": 2},
    {"prompt": "One " * 40, "max_tokens": 4, "temperature": 0.9, "seed": 1, "presence_penalty": 0.5},
    {"prompt": "Count:", "max_tokens": 4, "temperature": 0, "structured_outputs": {"regex": "[0-9]+"}},
]


def recorded() -> list[bytes]:
    """The messages; from the file, if it was made by the sources of today."""
    path = FOLDER / f"heard-{_sources()}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        messages = messages_of(_record(path.parent))
        path.write_bytes(b"".join(struct.pack("<I", len(each)) + each for each in messages))
    content, at, messages = path.read_bytes(), 0, []
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at)
        messages.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return messages


def stage_command(plan: PipelinePlan, index: int, previous: str = "") -> list[str]:
    """How stage `index` is started, with another address for the one before it."""
    stage = plan.stages[index]
    return (replace(stage, previous=previous) if previous else stage).command()


def two_stages(base: int) -> PipelinePlan:
    """A pipeline of the embedded model."""
    return PipelinePlan(
        model=str(docs_llama()),
        total=2,
        base_port=base,
        api=ApiEndpoint("127.0.0.1", base + 3, NAME),
        arguments=FLAGS,
    )


def _record(folder: Path) -> bytes:
    plan = two_stages(free_base_port(4))
    first, last = StageProcess(folder / "record-0.log"), StageProcess(folder / "record-1.log")
    with ExitStack() as ending:
        ending.callback(first.reap)
        ending.callback(last.reap)
        first.start(stage_command(plan, 0), STAGE_ENVIRONMENT)
        where = plan.stages[1].previous
        _await_port(int(where.rpartition(":")[2]), first)
        with tapped(f"tcp://{where}") as tap:
            last.start(stage_command(plan, 1, tap.where), STAGE_ENVIRONMENT)
            _await_answer(plan, first)
            for body in _REQUESTS:
                answer = httpx.post(
                    f"{plan.api.url}/v1/completions", json={"model": NAME, **body}, timeout=120
                )
                answer.raise_for_status()
            return bytes(tap.from_bound)


def _await_port(port: int, process: StageProcess) -> None:
    """Until something listens there, as the kernel lists it: a connection would be a peer."""
    listening = f":{port:04X} 00000000:0000 0A"
    _await(process, lambda: listening in Path("/proc/net/tcp").read_text())


def _await_answer(plan: PipelinePlan, process: StageProcess) -> None:
    def answers() -> bool:
        try:
            return httpx.get(f"{plan.api.url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    _await(process, answers)


def _await(process: StageProcess, there: Any) -> None:
    deadline = time.monotonic() + READY_S
    while not there():
        if process.exit_code() is not None or time.monotonic() > deadline:
            raise AssertionError(f"stage 0 did not come up:\n{process.log_path.read_text()[-3000:]}")
        time.sleep(0.1)


def _sources() -> str:
    """Changes with what the messages are made of."""
    total = hashlib.sha256(vllm_version().encode() + Path(__file__).read_bytes())
    for name in (
        "version",
        "control",
        "vllm/codec",
        "vllm/plain_form",
        "vllm/plain_step",
        "vllm/executor",
        "vllm/ring",
        "vllm/settings",
        "vllm/identity",
    ):
        total.update((ROOT / "zmqpp" / f"{name}.py").read_bytes())
    for path in sorted(Path(docs_llama()).iterdir()):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
