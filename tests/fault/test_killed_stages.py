"""Stages killed at random moments under load: every request ends with the tokens of an undisturbed run."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.cases import CASES, PROMPTS, RESUMED_IN_PIECES
from tests.integration.serving import NAME, Served, pipeline
from tests.integration.zygote import Zygote
from zmqpp.layers import LayerRange
from zmqpp.pipeline.launcher import Launcher

pytest.importorskip("vllm", reason="vLLM is not installed: `make test` installs it")
pytestmark = pytest.mark.vllm
STAGES = 4
SEED = int(os.environ.get("ZMQPP_CHAOS_SEED", "20"))
MOMENTS = int(os.environ.get("ZMQPP_CHAOS_MOMENTS", "1"))
VICTIMS = [(2,), (1, 3)] if MOMENTS == 1 else [(1,), (2,), (3,), (1, 3), (2, 3)]
BACK_S = 120.0


@pytest.fixture(scope="module")
def served(imported: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pipeline(tmp_path_factory.mktemp("recovery") / "logs", STAGES, zygote=imported) as served:
        yield served


class Load:
    """All cases, sixteen at a time, while something happens to the pipeline."""

    def __init__(self, served: Served, cases: Mapping[str, Any] = CASES, back_s: float = BACK_S) -> None:
        self._served, self._cases, self._back_s = served, cases, back_s
        self.answers: dict[str, Any] = {}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(served,))
        self._thread.start()

    def _run(self, served: Served) -> None:
        try:
            self.answers = served.answers(self._cases, at_once=16, timeout_s=self._back_s)
        except Exception as error:
            self.error = error

    def wait(self) -> dict[str, Any]:
        self._thread.join(self._back_s)
        assert not self._thread.is_alive(), f"requests hang: {scene(self._served)}"
        assert self.error is None, self.error
        return self.answers


def scene(served: Served) -> str:
    """What a pipeline that answers nothing looks like."""
    launcher = launcher_of(served)
    found = [f"lost {launcher.lost_stages()}, {launcher.states}", *map(str, launcher.news)]
    for path in sorted((served.log_dir or Path()).glob("stage_*.log*")):
        found.append(f"---- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
    try:
        found.append(httpx.get(f"{served.url}/health", timeout=10).text)
    except httpx.HTTPError as error:
        found.append(f"/health: {error!r}")
    return "\n".join(found)


def launcher_of(served: Served) -> Launcher:
    assert served.launcher is not None
    return served.launcher


def kill(served: Served, *victims: int) -> None:
    """SIGKILL, and another process in each place."""
    launcher = launcher_of(served)
    for victim in victims:
        os.kill(launcher.pids()[victim], signal.SIGKILL)
    for victim in victims:
        launcher.restart_stage(victim)


def await_ready(served: Served) -> None:
    launcher = launcher_of(served)
    deadline = time.monotonic() + BACK_S
    while not (launcher.lost_stages() == [] and launcher.all_ready()):
        assert time.monotonic() < deadline, launcher.states
        time.sleep(0.1)


def await_end(launcher: Launcher, stage: int) -> None:
    deadline = time.monotonic() + BACK_S
    while stage not in launcher.lost_stages():
        assert time.monotonic() < deadline, launcher.states
        time.sleep(0.1)


def await_health(served: Served, status: str) -> None:
    deadline = time.monotonic() + BACK_S
    while (answer := httpx.get(f"{served.url}/health", timeout=10)).status_code == 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    assert answer.json()["status"] == status, answer.text
    assert "stage 2" in answer.json()["reason"], answer.text


@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("victims", VICTIMS, ids=str)
def test_every_request_goes_on_after_a_kill_at_a_random_moment(
    served: Served, expected: dict[str, Any], victims: tuple[int, ...], moment: int
) -> None:
    delay_s = random.Random(f"{SEED} {victims} {moment}").uniform(0.0, 2.5)
    print(f"ZMQPP_CHAOS_SEED={SEED}: {victims} after {delay_s:.3f} s")
    load = Load(served)
    time.sleep(delay_s)
    kill(served, *victims)
    assert load.wait() == expected
    await_ready(served)


def test_a_long_seeded_answer_is_taken_up_in_pieces_where_it_was(served: Served) -> None:
    undisturbed = served.answers({"long": RESUMED_IN_PIECES})
    answers: dict[str, Any] = {}
    asking = threading.Thread(target=lambda: answers.update(served.answers({"long": RESUMED_IN_PIECES})))
    started = time.monotonic()
    asking.start()
    time.sleep(1.0)
    assert asking.is_alive(), f"answered after {time.monotonic() - started:.1f} s"
    kill(served, 3)
    asking.join(BACK_S)
    assert answers == undisturbed
    await_ready(served)


def test_a_stage_that_is_killed_again_while_it_loads_is_waited_for(
    served: Served, expected: dict[str, Any]
) -> None:
    load = Load(served)
    time.sleep(0.5)
    kill(served, 2)
    launcher = launcher_of(served)
    deadline = time.monotonic() + 60
    while launcher.states[2].phase not in ("loading", "loaded") and time.monotonic() < deadline:
        launcher.lost_stages()
        time.sleep(0.01)
    kill(served, 2)
    assert load.wait() == expected
    await_ready(served)


def test_who_asks_or_leaves_while_a_stage_is_missing_is_heard(
    served: Served, expected: dict[str, Any]
) -> None:
    launcher = launcher_of(served)
    leaving = httpx.Client(timeout=60)
    request = {"model": NAME, "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 900, "ignore_eos": True}
    with leaving.stream("POST", f"{served.url}/v1/completions", json={**request, "stream": True}) as stream:
        next(stream.iter_lines())
        os.kill(launcher.pids()[2], signal.SIGKILL)
        await_health(served, "degraded")
        leaving.close()
    load = Load(served)
    while launcher.lost_stages() != [2]:
        time.sleep(0.05)
    launcher.restart_stage(2)
    assert load.wait() == expected
    await_ready(served)
    generated = served.generated_tokens()
    time.sleep(1.0)
    assert served.generated_tokens() == generated, "who has left is still being answered"


def test_a_stage_that_does_not_fit_is_sent_away_and_another_one_awaited(
    served: Served, expected: dict[str, Any]
) -> None:
    launcher = launcher_of(served)
    right = launcher.stage_plans[2]
    load = Load(served)
    time.sleep(0.5)
    os.kill(launcher.pids()[2], signal.SIGKILL)
    launcher.stage_plans[2] = dataclasses.replace(right, layers=LayerRange(3, 6))
    launcher.restart_stage(2)
    await_end(launcher, 2)
    assert "overlap" in launcher.how_it_ended(2), launcher.how_it_ended(2)
    launcher.stage_plans[2] = right
    launcher.restart_stage(2)
    assert load.wait() == expected
    await_ready(served)


def test_a_stage_that_hangs_is_missed_and_taken_back_when_it_goes_on(
    served: Served, expected: dict[str, Any]
) -> None:
    launcher = launcher_of(served)
    pid = launcher.pids()[2]
    launcher.lost_stages()
    launcher.news.clear()
    load = Load(served)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)  # longer than the peer timeout
    os.kill(pid, signal.SIGCONT)
    assert load.wait() == expected
    assert launcher.lost_stages() == [] and launcher.pids()[2] == pid
    assert [(news["event"], news["stage"]) for news in launcher.news] == [("missed", 2), ("whole", 0)]


def test_the_others_keep_their_weights_for_the_next_stage_0(served: Served, expected: dict[str, Any]) -> None:
    before = launcher_of(served).pids()
    kill(served, 0)
    await_ready(served)
    assert launcher_of(served).pids()[1:] == before[1:]
    assert served.answers(CASES, at_once=16) == expected
    for index in range(1, STAGES):
        assert (served.log_dir is not None) and (served.log_dir / f"stage_{index}.log").exists()
