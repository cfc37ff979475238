"""The gateway's entrance: closed for new requests, or closed for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.gateway.conftest import FakeSource, Stage, ask, until
from zmqpp.gateway.app import build_app
from zmqpp.gateway.entrance import Entrance
from zmqpp.gateway.server import GatewayServer


@contextmanager
def gateway_with(entrance: Entrance, stage: Stage, source: FakeSource) -> Iterator[str]:
    with GatewayServer(build_app(stage.url, source, entrance), "127.0.0.1", 0) as server:
        yield server.url


def asked(url: str, answers: list[httpx.Response]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(ask(url)))
    thread.start()
    return thread


def test_drained_it_refuses_new_requests_and_finishes_those_that_run(
    running_stage: Stage, source: FakeSource
) -> None:
    entrance = Entrance()
    with gateway_with(entrance, running_stage, source) as url:
        with httpx.stream("GET", url + "/blob?mb=64", trust_env=False, timeout=20) as running:
            until(lambda: entrance.running == 1, "one request runs")
            entrance.drain()
            refused = ask(url + "/digest")
            health = ask(url + "/health")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["type"] == "ServiceUnavailableError"
            assert "is being drained" in refused.json()["error"]["message"]
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            assert health.json()["reason"] == "new requests are refused; 1 run"
            assert sum(map(len, running.iter_bytes())) == 64 << 20
        until(lambda: entrance.running == 0, "none runs")
        assert [ask(url + path).status_code for path in ("/pipeline/status", "/metrics")] == [200, 200]
        entrance.resume()
        assert ask(url + "/digest").status_code == ask(url + "/health").status_code == 200


def test_held_requests_wait_and_go_on(running_stage: Stage, source: FakeSource) -> None:
    entrance, answers = Entrance(), list[httpx.Response]()
    with gateway_with(entrance, running_stage, source) as url:
        entrance.hold()
        source.word.state = "recovering"
        source.word.stages[0].state = "loading"
        threads = [asked(url + "/digest", answers) for _ in range(20)]
        until(lambda: entrance.waiting == 20, "all wait")
        assert entrance.running == 0 and answers == []
        source.word.state = source.word.stages[0].state = "ready"
        entrance.release()
        for thread in threads:
            thread.join(20)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert (entrance.running, entrance.waiting) == (0, 0)


def test_a_client_that_leaves_waits_no_longer(running_stage: Stage, source: FakeSource) -> None:
    entrance = Entrance()
    with gateway_with(entrance, running_stage, source) as url:
        entrance.hold()
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(url + "/digest", trust_env=False, timeout=0.3)
        until(lambda: entrance.waiting == 0, "nobody waits")
        entrance.release()
        assert ask(url + "/digest").status_code == 200


def test_waiting_is_bounded_in_number_and_in_time(running_stage: Stage, source: FakeSource) -> None:
    entrance, answers = Entrance(most_waiting=1, longest_wait_s=0.5), list[httpx.Response]()
    with gateway_with(entrance, running_stage, source) as url:
        entrance.hold()
        first = asked(url + "/digest", answers)
        until(lambda: entrance.waiting == 1, "one waits")
        second = ask(url + "/digest")
        assert second.status_code == 503 and "1 requests wait already" in second.json()["error"]["message"]
        first.join(20)
        assert answers[0].status_code == 503 and answers[0].headers["retry-after"]
        assert "waited 0.5 s" in answers[0].json()["error"]["message"]


def test_drained_while_they_wait_they_are_told_so(running_stage: Stage, source: FakeSource) -> None:
    entrance, answers = Entrance(), list[httpx.Response]()
    with gateway_with(entrance, running_stage, source) as url:
        entrance.hold()
        waiting = asked(url + "/digest", answers)
        until(lambda: entrance.waiting == 1, "one waits")
        entrance.drain()
        waiting.join(20)
    assert answers[0].status_code == 503 and "is being drained" in answers[0].json()["error"]["message"]


def test_who_waits_when_the_pipeline_fails_is_told_which_stage_it_was(
    running_stage: Stage, source: FakeSource
) -> None:
    entrance, answers = Entrance(), list[httpx.Response]()
    with gateway_with(entrance, running_stage, source) as url:
        entrance.hold()
        waiting = asked(url + "/digest", answers)
        until(lambda: entrance.waiting == 1, "one waits")
        source.word.state, source.word.reason = "failed", "stage 1 was killed by SIGKILL"
    waiting.join(20)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["message"] == "the pipeline is failed: stage 1 was killed by SIGKILL"
