"""A stage that dies and does not come back: everyone says which one, requests get an error, nothing stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.serving import FLAGS, NAME, Served, long_only
from tests.integration.test_mistakes import assert_one_line, stage
from tests.integration.zygote import Running, Zygote
from zmqpp.models import docs_llama
from zmqpp.pipeline.ports import free_base_port

IMPATIENT = {"ZMQPP_RECOVERY_TIMEOUT_S": "3"}


def start(zygote: Zygote, total: int) -> tuple[Served, list[Running]]:
    port = free_base_port(total + 2)
    flags = ["serve", str(docs_llama())]
    running = [
        zygote.start(
            [*flags, *stage(i, total, port), *FLAGS, *(["--served-model-name", NAME] if i == 0 else [])],
            IMPATIENT,
        )
        for i in range(total)
    ]
    served = Served(f"http://127.0.0.1:{port + total + 1}")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{served.url}/health", timeout=2).status_code == 200:
                return served, running
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("\n".join(each.log.read_text()[-2000:] for each in running))


def session_of(running: Running) -> list[int]:
    """Processes of a started command line, by their session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == running.pid:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def command_pid(running: Running) -> int:
    """The `vllm serve` process itself: the only child of the one that waits for it."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("victim", [1, pytest.param(2, marks=long_only)])
def test_a_killed_stage_that_does_not_come_back_is_named_by_everyone(zygote: Zygote, victim: int) -> None:
    served, running = start(zygote, 3)
    answers: list[httpx.Response] = []
    body = {"model": NAME, "prompt": "The", "max_tokens": 900, "temperature": 0, "ignore_eos": True}
    request = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{served.url}/v1/completions", json=body, timeout=30))
    )
    request.start()
    time.sleep(1.0)
    os.kill(command_pid(running[victim]), signal.SIGKILL)
    request.join(25)
    assert answers and answers[0].status_code == 500
    assert f"stage {victim}" in answers[0].text
    with pytest.raises(httpx.TransportError):
        for _ in range(50):
            assert httpx.get(f"{served.url}/health", timeout=2).status_code == 503
            time.sleep(0.1)
    for index in {0, 1, 2} - {victim}:
        ended = running[index].wait(25)
        assert ended.code not in (0, None), ended.output[-2000:]
        said = ended.output.rpartition("zmqpp: error: ")[2]
        assert f"stage {victim} at tcp://127.0.0.1" in said, said
        # Whoever comes behind it hears no more from the engine.
        how = "not back after 3 s" if index < victim else "did not take the pipeline up again in 8 s"
        assert how in said, said


def test_stage_0_killed_in_an_idle_moment_is_waited_for_only_so_long(zygote: Zygote) -> None:
    _, running = start(zygote, 2)
    os.kill(command_pid(running[0]), signal.SIGKILL)
    ended = running[1].wait(25)
    assert_one_line(
        ended, "stage 1: stage 0 at tcp://", "is lost", "did not take the pipeline up again in 8 s"
    )
    await_empty_session(running[0])


def test_stage_0_stopped_by_a_signal_stops_the_others_in_good_order(zygote: Zygote) -> None:
    _, running = start(zygote, 2)
    os.kill(command_pid(running[0]), signal.SIGTERM)
    ended: list[Any] = [each.wait(20) for each in running]
    assert ended[1].code == 0, ended[1].output[-2000:]
    assert "stage 1: stopped by stage 0" in ended[1].output
    assert "zmqpp: error" not in ended[0].output


def test_a_server_killed_while_it_waits_for_stages_leaves_nothing_behind(zygote: Zygote) -> None:
    port = free_base_port(4)
    running = zygote.start(["serve", str(docs_llama()), *stage(0, 2, port), *FLAGS])
    await_line(running, "stage 0: layers 0-4", "PipelineStages", "Initializing a V1 LLM engine")
    time.sleep(8)  # the engine has started stage 0's own process and waits for the ring
    os.kill(command_pid(running), signal.SIGKILL)
    await_empty_session(running)


def test_a_stopped_first_stage_is_ended_with_its_engine(zygote: Zygote) -> None:
    served, running = start(zygote, 2)
    (first,) = (pid for pid in session_of(running[0]) if "zmqpp_stage_0" in title(pid))
    os.kill(first, signal.SIGSTOP)
    body = {"model": NAME, "prompt": "The", "max_tokens": 500, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 500
    for each in running:
        assert each.wait(30).code not in (0, None)
    await_empty_session(running[0])


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def await_line(running: Running, *any_of: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if running.log.exists() and any(text in running.log.read_text() for text in any_of):
            return
        time.sleep(0.2)
    raise AssertionError(running.log.read_text()[-2000:])


def await_empty_session(running: Running) -> None:
    deadline = time.monotonic() + 20
    while (left := [(pid, title(pid)) for pid in session_of(running)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
