"""Health, status, metrics and the page: the gateway's own answers."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import FakeSource, Stage, ask, gateway_over, ready
from zmqpp.errors import ConfigError
from zmqpp.gateway.app import build_app
from zmqpp.gateway.server import GatewayServer
from zmqpp.gateway.source import merged
from zmqpp.watch.status import Event, Layers, PipelineStatus, StageStatus

MEASURED = PipelineStatus(
    "ready",
    [
        StageStatus(0, "ready", host="a", pid=7, layers=Layers(0, 2, 4), steps=9),
        StageStatus(1, "ready", host="b", layers=Layers(2, 4, 4), steps=8),
    ],
    model="m",
    total_stages=2,
    tokens=123,
    losses=7,
    recoveries=7,
    events=[Event(20.0, "recovered", "stage 1 is back", 1), Event(30.2, "lost", "stage 1 was killed", 1)],
)


def test_health_is_ok_when_every_stage_is_and_stage_0_says_so(gateway: str) -> None:
    answer = ask(gateway + "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_health_names_the_stage_that_is_not_ready(gateway: str, source: FakeSource) -> None:
    source.word.stages[1].state, source.word.stages[1].reason = "lost", "exit code 1"
    answer = ask(gateway + "/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {
        "status": "unavailable",
        "state": "ready",
        "reason": "the pipeline is incomplete: stage 1 is lost (exit code 1)",
        "stages": [{"stage": 1, "state": "lost", "reason": "exit code 1"}],
    }


def test_health_is_not_ok_when_stage_0_does_not_answer(stage: Stage, source: FakeSource) -> None:
    stage.kill()
    with gateway_over(stage.url, source) as url:
        answer = ask(url + "/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, "stage 0 does not answer")


def test_health_counts_a_stage_nobody_has_heard_of(gateway: str, source: FakeSource) -> None:
    source.word.total_stages = 3
    answer = ask(gateway + "/health")
    assert [stage["stage"] for stage in answer.json()["stages"]] == [2]


def test_status_joins_stage_0_and_the_launcher(source: FakeSource) -> None:
    stage = Stage(MEASURED)
    try:
        with gateway_over(stage.url, source) as url:
            seen = ask(url + "/pipeline/status").json()
    finally:
        stage.close()
    assert (seen["model"], seen["tokens"], seen["restarts"]) == ("m", 123, 2)
    assert (seen["losses"], seen["recoveries"]) == (4, 3)  # the engine counts from its own start
    assert [(one["pid"], one["steps"], one["log"]) for one in seen["stages"]] == [
        (7, 9, "logs/stage_0.log"),
        (101, 8, "logs/stage_1.log"),
    ]
    # By time; the loss that both saw, once.
    assert [(event["at"], event["kind"]) for event in seen["events"]] == [
        (10.0, "ready"),
        (20.0, "recovered"),
        (30.0, "lost"),
    ]


def test_status_is_the_launchers_where_stage_0_knows_none(gateway: str) -> None:
    seen = ask(gateway + "/pipeline/status")
    assert seen.json()["stages"][1]["pid"] == 101
    assert seen.headers["cache-control"] == "no-store"


def test_launchers_word_wins_for_what_is_not_ready() -> None:
    ours = ready()
    ours.state, ours.reason = "restarting", "stage 1 exited"
    ours.stages[1].state, ours.stages[1].since = "restarting", 60.0
    seen = merged(ours, MEASURED)
    assert (seen.state, seen.reason) == ("restarting", "stage 1 exited")
    assert [(stage.state, stage.steps) for stage in seen.stages] == [("ready", 9), ("restarting", 8)]
    assert seen.stages[1].since == 60.0


def test_what_was_asked_for_is_no_loss_and_one_event() -> None:
    ours, theirs = ready(), PipelineStatus("ready", [], losses=3, recoveries=3)
    ours.losses, ours.recoveries, ours.replacements = 1, 1, 2
    ours.events = [
        Event(100.0, "restarting", "stage 1 is being replaced", 1),
        Event(120.0, "restarted", "stage 1 was replaced", 1),
        Event(200.0, "lost", "stage 2 was killed by SIGKILL", 2),
        Event(201.0, "restarting", "starting stage 2 anew", 2),
        Event(215.0, "recovered", "all 3 stages are ready"),
    ]
    theirs.events = [
        Event(101.0, "lost", "stage 1 at 127.0.0.1:1 is lost", 1),
        Event(119.0, "recovered", "the pipeline goes on after 18.0 s"),
        Event(200.2, "lost", "stage 2 at 127.0.0.1:2 is lost", 2),
        Event(214.0, "recovered", "the pipeline goes on after 14.0 s"),
        Event(300.0, "refused", "stage 1 refused 1 peers", 1),
    ]
    seen = merged(ours, theirs)
    assert [(event.kind, event.text.split()[0]) for event in seen.events] == [
        ("restarting", "stage"),
        ("restarted", "stage"),
        ("lost", "stage"),
        ("restarting", "starting"),
        ("recovered", "the"),
        ("refused", "stage"),
    ]
    assert "SIGKILL" in seen.events[2].text
    assert (seen.losses, seen.recoveries, seen.replacements) == (1, 1, 2)


def test_stage_0s_word_wins_while_the_launcher_sees_nothing_wrong() -> None:
    theirs = PipelineStatus(
        "restarting", [StageStatus(1, "lost", reason="no sign of life")], reason="stage 1"
    )
    seen = merged(ready(), theirs)
    assert (seen.state, seen.reason, seen.stages[1].state) == ("restarting", "stage 1", "lost")
    assert seen.stages[0].pid == 100


def test_metrics_are_ours_once_and_vllms(gateway: str) -> None:
    answer = ask(gateway + "/metrics")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"zmqpp_pipeline_up", "zmqpp_stage_up", "vllm:x"} <= families
    assert "zmqpp_doubled" not in answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_are_ours_alone_while_stage_0_is_down(stage: Stage, source: FakeSource) -> None:
    stage.kill()
    with gateway_over(stage.url, source) as url:
        answer = ask(url + "/metrics")
    assert answer.status_code == 200 and "vllm:" not in answer.text
    assert "zmqpp_pipeline_up 1.0" in answer.text


def test_page_comes_with_a_policy_that_lets_nothing_else_in(gateway: str) -> None:
    answer = ask(gateway + "/pipeline")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy


def test_the_bare_address_leads_to_the_page(gateway: str) -> None:
    answer = ask(gateway + "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "pipeline")


def test_what_the_gateway_answers_itself_works_while_not_ready(gateway: str, source: FakeSource) -> None:
    source.word.state = "starting"
    codes = [ask(gateway + path).status_code for path in ("/pipeline", "/pipeline/status", "/metrics")]
    assert codes == [200, 200, 200]


def test_busy_port_is_one_line_that_names_its_owner(gateway: str) -> None:
    port = int(gateway.rpartition(":")[2])
    with pytest.raises(ConfigError) as caught:
        GatewayServer(build_app("http://127.0.0.1:9", FakeSource()), "127.0.0.1", port).start()
    said = str(caught.value)
    assert f"--port {port}" in said and f"pid {os.getpid()}" in said and "\n" not in said


@pytest.mark.parametrize(
    ("host", "port", "said"), [("192.0.2.1", 0, os.strerror(errno.EADDRNOTAVAIL)), ("127.0.0.1", 70000, "")]
)
def test_address_that_cannot_be_bound_is_one_line(host: str, port: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GatewayServer(build_app("http://127.0.0.1:9", FakeSource()), host, port).start()
    assert f"--host {host} --port {port}" in str(caught.value) and "\n" not in str(caught.value)


def test_address_of_stage_0_must_be_http() -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        build_app("10.0.0.1:8000", FakeSource())


def test_gateway_listens_on_ipv6_too(running_stage: Stage, source: FakeSource) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    with GatewayServer(build_app(running_stage.url, source), "::1", 0) as server:
        assert ask(server.url + "/health").status_code == 200


def test_nothing_is_left_after_many_starts_and_stops(running_stage: Stage, source: FakeSource) -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        server = GatewayServer(build_app(running_stage.url, source), "127.0.0.1", 0)
        with server:
            assert ask(server.url + "/digest").status_code == 200
        server.stop()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
