"""Three stages on three machines that lose each other, stand still or talk over a bad wire: no request is lost, and no
token changes.

`ZMQPP_LONG=1` makes the partitions as long as 40 s, the standstills a minute, and waits for 120 s before it gives up.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq

from tests.fault.network import PORT
from tests.fault.wire import Wire, unreliable
from tests.integration.serving import LONG, NAME, long_only
from tests.integration.three_machines import RETURN_PORT, Load, Pipeline, on_three_machines
from zmqpp.errors import ConnectTimeout
from zmqpp.transport import Link

PEER_TIMEOUT_S = 5.0 if LONG else 2.0
RECOVERY_S = 120.0 if LONG else 20.0
ENDED_S = 2 * RECOVERY_S + 60.0
STOPPED_S = 60.0 if LONG else 5.0
WIRE_S = 8.0 if LONG else 4.0


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with on_three_machines(tmp_path_factory.mktemp("partition"), PEER_TIMEOUT_S, RECOVERY_S) as pipeline:
        yield pipeline


@contextmanager
def under_load(pipeline: Pipeline, expected: dict[str, Any], what: str) -> Iterator[None]:
    """What is inside happens meanwhile; afterwards everything must be answered as if it had not."""
    load = Load(pipeline)
    time.sleep(0.5)
    yield
    over = time.monotonic()
    rounds = load.wait(ENDED_S)
    assert all(answers == expected for answers in rounds)
    print(f"{what}: {len(rounds)} rounds, all answered {time.monotonic() - over:.1f} s after it was over")


# ---- cut off ----------------------------------------------------------------------------------------------

CUTS = [
    pytest.param((0, 1), 4.0, id="0 and 1 for 4 s"),
    pytest.param((2, 0), 4.0, id="2 and the engine for 4 s"),
    pytest.param((1, 2), 1.0, id="1 and 2 for less than the peer timeout", marks=long_only),
    pytest.param((1, 2), 8.0, id="1 and 2 for 8 s", marks=long_only),
    pytest.param((0, 1), 40.0, id="0 and 1 for 40 s", marks=long_only),
    pytest.param((1, 2), 40.0, id="1 and 2 for 40 s", marks=long_only),
    pytest.param((2, 0), 40.0, id="2 and the engine for 40 s", marks=long_only),
]


@pytest.mark.parametrize(("pair", "seconds"), CUTS)
def test_a_partition_loses_no_request_and_changes_no_token(
    pipeline: Pipeline, expected: dict[str, Any], pair: tuple[int, int], seconds: float
) -> None:
    with under_load(pipeline, expected, f"{pair} cut for {seconds:g} s"):
        pipeline.network.cut(*pair)
        time.sleep(seconds)
        pipeline.network.mend()


# ---- standing still, or slow ------------------------------------------------------------------------------

STANDING = [
    pytest.param("VLLM::EngineCore", id="the engine"),
    pytest.param("zmqpp_stage_0", id="stage 0's own process", marks=long_only),
    pytest.param("zmqpp_stage_1", id="the middle stage", marks=long_only),
    pytest.param("zmqpp_stage_2", id="the last stage", marks=long_only),
]


@pytest.mark.parametrize("title", STANDING)
def test_a_process_that_stands_still_for_a_while_changes_no_token(
    pipeline: Pipeline, expected: dict[str, Any], title: str
) -> None:
    pid = pipeline.pid(title)
    with under_load(pipeline, expected, f"{title} stood still for {STOPPED_S:g} s"):
        pipeline.stand_still(pid)
        time.sleep(STOPPED_S)
        pipeline.go_on(pid)


def test_a_stage_that_gets_a_tenth_of_the_time_slows_all_and_fills_no_memory(
    pipeline: Pipeline, expected: dict[str, Any]
) -> None:
    slow = pipeline.pid("zmqpp_stage_1")
    others = [pipeline.pid(title) for title in ("zmqpp_stage_0", "zmqpp_stage_2", "VLLM::EngineCore")]
    before = [resident_bytes(pid) for pid in others]
    with under_load(pipeline, expected, "stage 1 runs for 20 ms of each 200"):
        until_s = time.monotonic() + WIRE_S
        while time.monotonic() < until_s:
            pipeline.stand_still(slow)
            time.sleep(0.18)
            pipeline.go_on(slow)
            time.sleep(0.02)
    grown = [resident_bytes(pid) - size for pid, size in zip(others, before, strict=True)]
    print(f"memory grew by {[round(size / (1 << 20), 1) for size in grown]} MiB")
    assert max(grown) < 128 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- a bad wire -------------------------------------------------------------------------------------------


def reset_often(wire: Wire) -> None:
    chance = random.Random(1)
    wire.reset_after = lambda: int(chance.choice([300, 20_000, 400_000]) * (0.5 + chance.random()))


def lose_often(wire: Wire) -> None:
    wire.fault = unreliable(2, one_in=25)


def delay(wire: Wire) -> None:
    chance = random.Random(3)
    wire.latency_s = lambda: 0.1 + 0.1 * chance.random()


@pytest.mark.parametrize(
    "do",
    [reset_often, pytest.param(lose_often, marks=long_only), pytest.param(delay, marks=long_only)],
    ids=["resets", "loses", "delays"],
)
def test_a_bad_wire_between_two_stages_loses_no_request_and_changes_no_token(
    pipeline: Pipeline, expected: dict[str, Any], do: Callable[[Wire], None]
) -> None:
    with under_load(pipeline, expected, do.__name__), pipeline.network.bad_wire(0, at=1, port=PORT) as wire:
        do(wire)
        time.sleep(WIRE_S)
        print(f"{do.__name__}: {wire.connections} connections, {wire.resets} resets")


# ---- strangers --------------------------------------------------------------------------------------------


def test_second_receivers_at_every_stage_get_nothing_and_are_named(
    pipeline: Pipeline, expected: dict[str, Any]
) -> None:
    """Honest ones, with a link as the stages have it, and ones made by hand that come again and again."""
    where = [f"10.77.0.1:{PORT}", f"10.77.1.1:{PORT}", f"10.77.2.1:{RETURN_PORT}"]
    with under_load(pipeline, expected, "strangers"):
        for address in where:
            assert pipeline.network.router.inside(lambda address=address: steal(address)) == 0
            pipeline.network.router.inside(lambda address=address: greet(address))
    for stage in range(3):
        line = f"refused a peer at 10.77.{stage}.254: this link has its receiver already"
        deadline = time.monotonic() + 20  # an idle stage looks now and then
        while line not in pipeline.log(stage) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert pipeline.log(stage).count(line) == 1, pipeline.log(stage)[-1500:]


def steal(address: str) -> int:
    """How many messages twenty PULL sockets got, and as many PUSH sockets say something."""
    with zmq.Context() as context:
        pulls = [context.socket(zmq.PULL) for _ in range(20)]
        pushes = [context.socket(zmq.PUSH) for _ in range(20)]
        for each in (*pulls, *pushes):
            each.linger = 0
            each.connect(f"tcp://{address}")
        for push in pushes:
            if push.poll(20, zmq.POLLOUT):
                with suppress(zmq.Again):  # the connection may be cut meanwhile
                    push.send(b"ZMQPP" * 100, zmq.DONTWAIT)
        got = sum(bool(pull.poll(50)) for pull in pulls)
        for each in (*pulls, *pushes):
            each.close()
    return got


def greet(address: str) -> None:
    with (
        Link(bind=None, connect=address) as link,
        pytest.raises(ConnectTimeout, match="it has its receiver already"),
    ):
        link.wait_peers(1.5)


# ---- for good ---------------------------------------------------------------------------------------------


@long_only
def test_a_partition_that_outlasts_the_recovery_ends_everyone_with_the_stage_that_is_missing(
    pipeline: Pipeline,
) -> None:
    """The last of these tests: nothing is left."""
    ends_with_an_error(pipeline, lambda: pipeline.network.cut(0, 1))
    for stage, missed in enumerate(("stage 0 at", "stage 0 at", "stage [01] at")):
        # Stage 2 may see stage 1 leave before it has heard why.
        said = pipeline.log(stage).rpartition("zmqpp: error: ")[2].partition("\n")[0]
        assert re.search(missed, said), said


@long_only
def test_a_wire_that_never_stops_losing_messages_ends_everyone_at_the_deadline(tmp_path: Path) -> None:
    with on_three_machines(tmp_path, peer_timeout_s=2.0, recovery_s=20.0) as pipeline:
        with pipeline.network.bad_wire(0, at=1) as wire:
            wire.fault = unreliable(4, one_in=3)
            ends_with_an_error(pipeline, wire.reset)
            print(f"{wire.connections} connections")


def ends_with_an_error(pipeline: Pipeline, begin: Callable[[], None]) -> None:
    """From `begin` on nothing can go on: a request that runs hears which stage is missing, and every stage leaves."""
    body = {"model": NAME, "prompt": "The", "max_tokens": 900, "temperature": 0, "ignore_eos": True}
    url = "http://127.0.0.1:8000/v1/completions"
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(pipeline.ask(lambda _: httpx.post(url, json=body, timeout=ENDED_S)))
    )
    asking.start()
    time.sleep(1.0)
    begun = time.monotonic()
    begin()
    asking.join(ENDED_S)
    print(f"answered after {time.monotonic() - begun:.1f} s: {answers[0].text[:300] if answers else None}")
    assert answers and answers[0].status_code == 500
    assert "stage 0 at" in answers[0].text, answers[0].text
    for process in pipeline.processes:
        assert process.wait(ENDED_S) not in (0, None)
    print(f"all ended after {time.monotonic() - begun:.1f} s")
