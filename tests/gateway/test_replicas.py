"""Several replicas behind one entry: who gets a request, and what becomes of it where one is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import FakeSource, Stage, ask, until
from zmqpp.gateway.app import build_replicated_app
from zmqpp.gateway.entrance import Entrance
from zmqpp.gateway.joined import joined_metrics, joined_trace
from zmqpp.gateway.replica import Replica
from zmqpp.gateway.server import GatewayServer
from zmqpp.gateway.upstream import Upstream


@dataclass
class Several:
    """Two or three fake stages 0 behind a gateway."""

    stages: list[Stage]
    sources: list[FakeSource] = field(default_factory=list)
    entrances: list[Entrance] = field(default_factory=list)
    url: str = ""

    def asked(self) -> list[list[str]]:
        """What each was asked with /hang, in order."""
        return [stage.begun() for stage in self.stages]

    def lose(self, number: int, state: str = "recovering") -> None:
        """A stage behind stage 0."""
        word = self.sources[number].word
        word.state, word.reason = state, "stage 1 was killed"
        word.stages[1].state = "lost"


@contextmanager
def several(total: int = 2) -> Iterator[Several]:
    found = Several([Stage() for _ in range(total)])
    found.sources = [FakeSource() for _ in found.stages]
    found.entrances = [Entrance() for _ in found.stages]
    replicas = [
        Replica(number, Upstream(stage.url), found.sources[number], found.entrances[number])
        for number, stage in enumerate(found.stages)
    ]
    try:
        with GatewayServer(build_replicated_app(replicas), "127.0.0.1", 0) as server:
            found.url = server.url
            yield found
    finally:
        for stage in found.stages:
            stage.close()


def post(url: str, **more: object) -> httpx.Response:
    return httpx.post(url, trust_env=False, timeout=20, **more)  # type: ignore[arg-type]


class Background:
    """A request on a thread of its own."""

    def __init__(self, url: str, body: bytes = b"{}") -> None:
        self.answer: httpx.Response | None = None
        self._url, self._body = url, body
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.answer = post(self._url, content=self._body)

    def done(self) -> httpx.Response:
        self._thread.join(20)
        assert self.answer is not None
        return self.answer


def test_each_gets_the_next_request_and_the_one_with_fewest_outstanding_gets_more() -> None:
    with several(3) as replicas:
        first = [Background(f"{replicas.url}/wait/{n}") for n in range(3)]
        until(lambda: [one.running for one in replicas.entrances] == [1, 1, 1], "each has one")
        replicas.stages[1].go()
        until(lambda: replicas.entrances[1].running == 0, "replica 1 has none")
        busy = Background(f"{replicas.url}/wait/3")
        until(lambda: "/wait/3" in replicas.stages[1].begun(), "it went there")
        for stage in replicas.stages:
            stage.go()
        assert [one.done().status_code for one in [*first, busy]] == [200] * 4


def test_a_replica_whose_stage_0_is_gone_loses_its_requests_to_the_others_body_and_all() -> None:
    with several() as replicas:
        waiting = [Background(f"{replicas.url}/wait/{n}", b"x" * 100_000) for n in range(4)]
        until(lambda: [one.running for one in replicas.entrances] == [2, 2], "each has two")
        replicas.stages[0].kill()
        until(lambda: [one.running for one in replicas.entrances] == [0, 4], "replica 1 has all")
        replicas.stages[1].go()
        answers = [one.done() for one in waiting]
        assert [(one.status_code, one.json()["size"]) for one in answers] == [(200, 100_000)] * 4
        # The launcher may not know yet; whoever comes meanwhile is served all the same.
        assert [ask(replicas.url + "/digest").status_code for _ in range(4)] == [200] * 4


def test_what_has_no_answer_yet_leaves_a_replica_that_recovers_and_what_has_stays() -> None:
    with several() as replicas:
        waiting = Background(f"{replicas.url}/wait/1")
        until(lambda: sum(one.running for one in replicas.entrances) == 1, "it runs")
        at = [one.running for one in replicas.entrances].index(1)
        with httpx.stream("GET", replicas.url + "/sse", trust_env=False, timeout=20) as other_stream:
            lines = (line for line in other_stream.iter_lines() if line)
            assert next(lines) == 'data: {"n": 0}'
            with httpx.stream("GET", replicas.url + "/sse", trust_env=False, timeout=20) as stream:
                mine = (line for line in stream.iter_lines() if line)
                assert next(mine) == 'data: {"n": 0}'
                until(lambda: replicas.entrances[at].running == 2, "a stream runs beside it")
                replicas.lose(at)
                until(lambda: replicas.entrances[1 - at].running == 2, "what waits has moved")
                assert replicas.entrances[at].running == 1, "the stream stays where it began"
                for stage in replicas.stages:
                    stage.go()
                assert waiting.done().status_code == 200
                assert next(mine) == 'data: {"n": 1}'


def test_a_stream_that_has_told_nothing_moves_and_none_is_told_twice() -> None:
    with several() as replicas:
        with httpx.stream("GET", replicas.url + "/silent", trust_env=False, timeout=20) as stream:
            pass
        assert stream.status_code == 200
        told = Background(f"{replicas.url}/late")
        until(lambda: sum(one.running for one in replicas.entrances) == 1, "it runs")
        at = [one.running for one in replicas.entrances].index(1)
        until(lambda: "/late" in replicas.stages[at].begun(), "its headers are sent")
        replicas.lose(at)
        until(lambda: "/late" in replicas.stages[1 - at].begun(), "it is asked elsewhere")
        replicas.stages[1 - at].go()
        assert told.done().text == "data: {}\n\n"
        until(lambda: "/late" in replicas.stages[at].aborts(), "the first one is aborted")


def test_a_request_that_may_have_made_a_stage_fail_does_not_go_on_to_the_next_replica() -> None:
    with several() as replicas:
        waiting = Background(f"{replicas.url}/wait/1")
        until(lambda: sum(one.running for one in replicas.entrances) == 1, "it runs")
        at = [one.running for one in replicas.entrances].index(1)
        replicas.sources[at].lost_from_outside = False
        replicas.lose(at)
        assert ask(replicas.url + "/digest").status_code == 200, "others go elsewhere"
        time.sleep(1.0)  # five looks
        assert replicas.entrances[at].running == 1
        replicas.stages[at].go()
        assert waiting.done().status_code == 200


def test_an_error_of_a_pipeline_that_has_failed_is_not_the_answer_while_another_one_works() -> None:
    with several() as replicas:
        replicas.sources[0].word.state = "restarting"
        replicas.lose(0, "failed")
        assert [ask(replicas.url + "/digest").status_code for _ in range(4)] == [200] * 4
    with several() as replicas:

        def fail() -> None:
            replicas.lose(0, "failed")

        failing = [Background(f"{replicas.url}/broken") for _ in range(2)]
        until(lambda: [one.running for one in replicas.entrances] == [1, 1], "each has one")
        fail()
        for stage in replicas.stages:
            stage.go()
        assert [one.done().status_code for one in failing] == [500, 500], (
            "replica 1 says it too, and it is whole"
        )
        assert [stage.begun().count("/broken") for stage in replicas.stages] == [1, 2]


def test_when_none_is_left_the_reason_is_told() -> None:
    with several() as replicas:
        for number in range(2):
            replicas.lose(number, "failed")
        answer = ask(replicas.url + "/digest")
        assert answer.status_code == 503 and "stage 1 was killed" in answer.json()["error"]["message"]
        for stage in replicas.stages:
            stage.kill()
        for source in replicas.sources:
            source.word.state = "ready"
        answer = ask(replicas.url + "/digest")
        assert answer.status_code == 503 and "went away" in answer.json()["error"]["message"]


def test_stage_0_being_replaced_new_requests_go_to_the_others() -> None:
    with several() as replicas:
        replicas.entrances[0].hold()
        assert [ask(replicas.url + "/digest").status_code for _ in range(4)] == [200] * 4
        replicas.entrances[1].hold()
        waiting = Background(replicas.url + "/digest")
        until(lambda: sum(one.waiting for one in replicas.entrances) == 1, "it waits")
        for entrance in replicas.entrances:
            entrance.release()
        assert waiting.done().status_code == 200


def test_what_changes_the_state_goes_to_all_once() -> None:
    with several(3) as replicas:
        adapter = {"lora_name": "a", "lora_path": "/a"}
        answer = post(replicas.url + "/v1/load_lora_adapter?x=1", json=adapter)
        assert (answer.status_code, answer.text) == (200, "done")
        assert [stage.begun() for stage in replicas.stages] == [
            [json.dumps(adapter, separators=(",", ":"))]
        ] * 3
        replicas.lose(1, "restarting")
        refused = post(replicas.url + "/v1/unload_lora_adapter", json=adapter)
        assert refused.status_code == 503
        assert "no replica was changed, as replica 1 would not be" in refused.json()["error"]["message"]
        assert [len(stage.begun()) for stage in replicas.stages] == [1] * 3


def test_where_replicas_differ_the_answer_says_which_did_it() -> None:
    with several() as replicas:
        body = {"lora_name": "a", "lora_path": "/a"}
        assert post(replicas.stages[1].url + "/v1/load_lora_adapter", json=body).status_code == 200
        answer = post(replicas.url + "/v1/load_lora_adapter", json=body)
        assert answer.status_code == 400
        said = answer.json()["error"]["message"]
        assert said.startswith("replica 1 answers 400: already there") and said.endswith(
            "replicas that did it: 0"
        )
        again = post(replicas.url + "/v1/load_lora_adapter", json=body)
        assert (again.status_code, again.text) == (400, "already there")
        replicas.stages[1].kill()
        assert post(replicas.url + "/sleep?level=1").status_code == 502


def test_a_new_stage_0_gets_the_adapters_before_any_request(capfd: pytest.CaptureFixture[str]) -> None:
    with several() as replicas:
        one, two = ({"lora_name": name, "lora_path": f"/{name}"} for name in ("one", "two"))
        for adapter in (one, two):
            assert post(replicas.url + "/v1/load_lora_adapter", json=adapter).status_code == 200
        assert post(replicas.url + "/v1/unload_lora_adapter", json=two).status_code == 200
        before = replicas.stages[1].begun()
        replicas.sources[1].word.state = "recovering"
        replicas.sources[1].word.stages[0].pid = 999
        ask(replicas.url + "/digest")
        assert replicas.stages[1].begun() == before
        replicas.sources[1].word.state = "ready"
        until(lambda: len(replicas.stages[1].begun()) > len(before), "it is loaded again")
        assert json.loads(replicas.stages[1].begun()[-1]) == one
        held = Background(replicas.url + "/wait/1")
        until(lambda: sum(one.running for one in replicas.entrances) == 1, "one runs")
        assert ask(replicas.url + "/digest").status_code == 200
        for stage in replicas.stages:
            stage.go()
        assert held.done().status_code == 200
        assert replicas.stages[0].begun().count(json.dumps(one, separators=(",", ":"))) == 1
    assert "could not load adapter" not in capfd.readouterr().err


def test_an_adapter_that_one_had_already_is_loaded_again_with_the_key_of_its_request() -> None:
    with several() as replicas:
        body, key = {"lora_name": "a", "lora_path": "/a"}, {"authorization": "Bearer key"}
        assert post(replicas.stages[1].url + "/v1/load_lora_adapter", json=body).status_code == 200
        assert post(replicas.url + "/v1/load_lora_adapter", json=body, headers=key).status_code == 400
        # Replica 0 did it, replica 1 had it: the answer is an error, but all have it now.
        before = replicas.stages[0].begun()
        replicas.sources[0].word.stages[0].pid = 999
        until(lambda: len(replicas.stages[0].begun()) == len(before) + 2, "it is loaded again")
        assert replicas.stages[0].begun()[-2] == "Bearer key"


def test_health_is_ok_degraded_or_neither() -> None:
    with several() as replicas:
        assert ask(replicas.url + "/health").json() == {"status": "ok"}
        replicas.lose(1)
        some = ask(replicas.url + "/health")
        assert (some.status_code, some.json()["status"]) == (200, "degraded")
        assert some.json()["reason"] == "replica 1: the pipeline is recovering: stage 1 was killed"
        assert some.json()["replicas"] == [{"replica": 1, "status": "degraded", "state": "recovering"}]
        assert ask(replicas.url + "/health?replica=1").status_code == 503
        assert ask(replicas.url + "/health?replica=0").json() == {"status": "ok"}
        assert ask(replicas.url + "/health?replica=2").status_code == 404
        replicas.stages[0].kill()
        none = ask(replicas.url + "/health")
        assert none.status_code == 503 and none.headers["retry-after"]
        for entrance in replicas.entrances:
            entrance.drain()
        assert ask(replicas.url + "/health").json()["status"] == "draining"
        assert "drained" in ask(replicas.url + "/digest").json()["error"]["message"]


def test_the_status_joins_all_and_has_each() -> None:
    with several() as replicas:
        replicas.lose(1)
        seen = ask(replicas.url + "/pipeline/status").json()
        assert (seen["state"], seen["total_stages"], seen["losses"]) == ("degraded", 4, 8)
        assert [(one["replica"], one["stage"]) for one in seen["stages"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert [(one["replica"], one["state"]) for one in seen["replicas"]] == [
            (0, "ready"),
            (1, "recovering"),
        ]
        assert {event["text"][:10] for event in seen["events"]} == {"replica 0:", "replica 1:"}
        own = ask(replicas.url + "/pipeline/status?replica=1").json()
        assert (own["state"], own["total_stages"], own["replicas"]) == ("recovering", 2, [])


def test_metrics_are_one_page_with_a_label_for_each() -> None:
    with several() as replicas:
        replicas.lose(1)
        text = ask(replicas.url + "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == sum(line.startswith("# TYPE ") for line in text.splitlines())
    up = {one.labels["replica"]: one.value for one in families["zmqpp_pipeline_up"].samples}
    assert up == {"0": 1.0, "1": 0.0}
    assert [one.labels for one in families["vllm:x"].samples] == [{"replica": "0"}, {"replica": "1"}]
    assert "doubled" not in text


def test_a_label_that_looks_like_a_metric_stays_as_it_is() -> None:
    page = b'# HELP a Text.\n# TYPE a gauge\na{b="} 1 # HELP \\" {"} 1.5\n# EOF\n'
    assert joined_metrics([page, page]).splitlines() == [
        b"# HELP a Text.",
        b"# TYPE a gauge",
        b'a{replica="0",b="} 1 # HELP \\" {"} 1.5',
        b'a{replica="1",b="} 1 # HELP \\" {"} 1.5',
    ]


def test_traces_of_all_are_one_with_processes_of_their_own() -> None:
    name = {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "stage 0 (h)"}}
    arrow = {"ph": "s", "id": "3.1", "pid": 1, "ts": 1.0}
    other = {"seconds": 1.0, "steps": 2, "clocks": [{"stage": 0}], "stages": [{"stage": 0}]}
    one = {"traceEvents": [name, arrow], "displayTimeUnit": "ms", "otherData": other}
    both = joined_trace([one, one])
    assert len({event["pid"] for event in both["traceEvents"]}) == 2
    assert [event["args"]["name"] for event in both["traceEvents"] if event["ph"] == "M"] == [
        "replica 0, stage 0 (h)",
        "replica 1, stage 0 (h)",
    ]
    assert [event["id"] for event in both["traceEvents"] if "id" in event] == ["0.3.1", "1.3.1"]
    assert both["otherData"]["steps"] == 4
    assert [stage["stage"] for stage in both["otherData"]["stages"]] == ["0.0", "1.0"]


@pytest.mark.parametrize("path", ["/pipeline/trace?seconds=x", "/pipeline/trace?seconds=0"])
def test_a_trace_of_no_length_is_refused(path: str) -> None:
    with several() as replicas:
        assert ask(replicas.url + path).status_code == 400
