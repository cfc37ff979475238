"""Whichever side goes first, the other one hears of it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import FakeSource, Stage, ask, gateway_over, until


@contextmanager
def request(url: str, text: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        yield connection


def test_client_that_leaves_before_the_first_byte_aborts_the_request(
    gateway: str, running_stage: Stage
) -> None:
    with request(gateway, "POST /hang/first HTTP/1.1\nHost: x\nContent-Length: 2\n\nab"):
        until(lambda: "/hang/first" in running_stage.begun(), "the request arrives")
        assert "/hang/first" not in running_stage.aborts()
    until(lambda: "/hang/first" in running_stage.aborts(), "the abort arrives")


def test_client_that_leaves_in_mid_stream_aborts_the_request(gateway: str, running_stage: Stage) -> None:
    with request(gateway, "GET /endless/mid HTTP/1.1\nHost: x\n\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert "/endless/mid" not in running_stage.aborts()
    until(lambda: "/endless/mid" in running_stage.aborts(), "the abort arrives")


def test_client_that_resets_the_connection_aborts_the_request(gateway: str, running_stage: Stage) -> None:
    with request(gateway, "GET /endless/reset HTTP/1.1\nHost: x\n\n") as connection:
        assert connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: "/endless/reset" in running_stage.aborts(), "the abort arrives")


def test_client_that_leaves_in_the_middle_of_its_body_aborts_the_request(
    gateway: str, running_stage: Stage
) -> None:
    with request(gateway, "POST /hang/body HTTP/1.1\nHost: x\nContent-Length: 1000\n\nab"):
        until(lambda: "/hang/body" in running_stage.begun(), "the request arrives")
    until(lambda: "/hang/body" in running_stage.aborts(), "the abort arrives")


def test_stage_that_dies_in_an_event_stream_leaves_an_error_event(stage: Stage, source: FakeSource) -> None:
    with gateway_over(stage.url, source) as url:
        with httpx.stream("GET", url + "/die/sse", timeout=20, trust_env=False) as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines) == 'data: {"n": 0}'
            stage.kill()
            source.word.state, source.word.reason = "failed", "stage 0 was killed"
            error = json.loads(next(lines).removeprefix("data: "))["error"]
            assert list(lines) == []
    assert (error["code"], error["message"]) == (502, "the pipeline is failed: stage 0 was killed")


def test_stage_that_dies_in_a_plain_answer_leaves_it_visibly_cut(stage: Stage, source: FakeSource) -> None:
    with gateway_over(stage.url, source) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        connection.request("GET", "/die/length")
        response = connection.getresponse()
        assert response.read(7) == b"data: {"
        stage.kill()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        connection.close()


def test_stage_that_dies_before_it_answers_is_a_502_in_words(stage: Stage, source: FakeSource) -> None:
    with gateway_over(stage.url, source) as url:
        answer = ask(url + "/die")
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "5")
    assert answer.json()["error"]["type"] == "BadGatewayError"
    assert "stage 0" in answer.json()["error"]["message"]


def test_stage_that_nobody_listens_for_is_a_503_in_words(stage: Stage, source: FakeSource) -> None:
    stage.kill()
    with gateway_over(stage.url, source) as url:
        answer = ask(url + "/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize("path", ["/endless", "/hang"])
def test_stopping_ends_open_requests_and_says_so(running_stage: Stage, source: FakeSource, path: str) -> None:
    name = f"{path}/stopped"
    with gateway_over(running_stage.url, source) as url:
        opened = request(url, f"GET {name} HTTP/1.1\nHost: x\n\n")
        connection = opened.__enter__()
        until(lambda: name in running_stage.begun(), "the request arrives")
    answer = b"".join(iter(_reader(connection), b""))
    opened.__exit__(None, None, None)
    assert b"the pipeline is being stopped" in answer
    assert answer.startswith(b"HTTP/1.1 503 " if path == "/hang" else b"HTTP/1.1 200 ")
    until(lambda: name in running_stage.aborts(), "the abort arrives")


def _reader(connection: socket.socket) -> Callable[[], bytes]:
    return lambda: connection.recv(65536)
