"""Requests pass through unchanged, as streams, both ways."""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import FakeSource, Stage, ask

MB = 1 << 20
BIG = 200
MAY_GROW = 48 * MB


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)


def raw(url: str, text: str) -> bytes:
    """Everything the server says to these bytes, until it closes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_events_arrive_one_by_one_while_the_next_is_not_yet_made(gateway: str, running_stage: Stage) -> None:
    with httpx.stream("GET", gateway + "/sse", timeout=20, trust_env=False) as response:
        lines = (line for line in response.iter_lines() if line)
        for number in range(3):
            # The stage makes each one only after the `go` that follows the arrival of the one before.
            assert next(lines) == f'data: {{"n": {number}}}'
            running_stage.go()
        assert list(lines) == ["data: [DONE]"]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    "target", ["/a%2Fb/%20c?q=%2F&q=2&e", "/digest", "//x//y?", "/v1/models/a:b@c?x=%C3%A9+1"]
)
def test_path_and_query_arrive_as_they_were_written(gateway: str, target: str) -> None:
    connection = connect(gateway)
    connection.request("GET", target)
    seen = httpx.Response(200, content=connection.getresponse().read()).json()
    connection.close()
    assert seen["target"] == (target if "?" in target else target + "?")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_passes(gateway: str, method: str) -> None:
    assert httpx.request(method, gateway + "/digest", trust_env=False).json()["method"] == method


def test_request_headers_pass_but_those_of_the_connection(gateway: str) -> None:
    seen = raw(
        gateway,
        "POST /digest HTTP/1.1\nHost: entry.example:99\nX-Twice: 1\nX-Twice: 2\nX-Request-Id: abc\n"
        "Connection: close, X-Hop\nX-Hop: 1\nTE: trailers\nProxy-Authorization: none\nAuthorization: Bearer k\n"
        "X-Forwarded-For: 10.9.8.7\nContent-Length: 3\n\nabc",
    )
    body = httpx.Response(200, content=seen.partition(b"\r\n\r\n")[2]).json()
    names = [name for name, _ in body["headers"]]
    given = dict(body["headers"])
    assert [value for name, value in body["headers"] if name == "x-twice"] == ["1", "2"]
    assert not {"x-hop", "te", "proxy-authorization", "user-agent", "accept-encoding", "accept"} & set(names)
    assert (given["x-request-id"], given["authorization"]) == ("abc", "Bearer k")
    assert given["host"] == given["x-forwarded-host"] == "entry.example:99"
    assert (given["x-forwarded-for"], given["x-forwarded-proto"]) == ("10.9.8.7, 127.0.0.1", "http")
    assert body["size"] == 3


def test_response_headers_pass_but_those_of_the_connection(gateway: str) -> None:
    connection = connect(gateway)
    connection.request("GET", "/cookies")
    response = connection.getresponse()
    assert response.status == 418
    assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert response.headers["x-request-id"] == "made-upstream"
    assert response.headers["x-private"] is None
    # Bytes that claim an encoding are neither decoded nor touched.
    assert (response.headers["content-encoding"], response.read()) == ("x-odd", b"\x00\x01\x02\x03")
    assert len(response.headers.get_all("server") or []) <= 1
    connection.close()


def test_head_has_the_length_and_no_body(gateway: str) -> None:
    answer = raw(gateway, "HEAD /blob?mb=3 HTTP/1.1\nHost: x\nConnection: close\n\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: 3145728" in head.lower() and body == b""


def test_body_of_unknown_length_passes_in_chunks(gateway: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"one", b"two", b"three")

    seen = httpx.post(gateway + "/digest", content=pieces(), trust_env=False).json()
    assert seen["sha256"] == hashlib.sha256(b"onetwothree").hexdigest()
    assert dict(seen["headers"])["transfer-encoding"] == "chunked"


def test_client_that_expects_100_is_told_to_go_on(gateway: str) -> None:
    parts = urlsplit(gateway)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(
            b"POST /digest HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 2\r\nConnection: close\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"ok")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"size": 2' in answer


def test_one_connection_serves_many_requests(gateway: str) -> None:
    connection = connect(gateway)
    for number in range(5):
        connection.request("POST", "/digest", body=b"x" * number)
        assert f'"size": {number}'.encode() in connection.getresponse().read()
    connection.close()


def test_websocket_is_refused_in_words(gateway: str) -> None:
    answer = raw(
        gateway,
        "GET /v1/realtime HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n"
        "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n\n",
    )
    assert answer.startswith(b"HTTP/1.1 501 ") and b"WebSocket" in answer


def test_offer_of_http2_is_passed_over(gateway: str) -> None:
    answer = raw(
        gateway,
        "GET /digest HTTP/1.1\nHost: x\nConnection: close, Upgrade, HTTP2-Settings\n"
        "Upgrade: h2c\nHTTP2-Settings: AAMAAABk\n\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("value", ["a\x01b", "a\x00b", "a\x7fb"])
def test_header_that_http_does_not_allow_is_the_clients_mistake(gateway: str, value: str) -> None:
    said = raw(gateway, f"GET /digest HTTP/1.1\nHost: x\nX-Odd: {value}\nConnection: close\n\n")
    assert said.startswith(b"HTTP/1.1 400"), said


def test_old_client_without_a_host_is_served(gateway: str) -> None:
    assert raw(gateway, "GET /digest HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 ")


def test_200_megabytes_go_in_without_being_held(gateway: str) -> None:
    piece = b"\xab" * MB

    def pieces() -> Iterator[bytes]:
        for _ in range(BIG):
            yield piece

    grown = Peak()
    connection = connect(gateway)
    connection.request("POST", "/digest", body=pieces(), headers={"Content-Length": str(BIG * MB)})
    seen = httpx.Response(200, content=connection.getresponse().read()).json()
    connection.close()
    assert seen["size"] == BIG * MB
    assert grown.bytes() < MAY_GROW
    assert seen["sha256"] == hashlib.sha256(piece * BIG).hexdigest()


def test_200_megabytes_come_out_without_being_held(gateway: str) -> None:
    grown, size = Peak(), 0
    connection = connect(gateway)
    connection.request("GET", f"/blob?mb={BIG}")
    response = connection.getresponse()
    while piece := response.read(256 * 1024):
        assert piece.count(0xAB) == len(piece)
        size += len(piece)
    connection.close()
    assert size == BIG * MB
    assert grown.bytes() < MAY_GROW


def test_slow_reader_holds_the_stage_back(gateway: str) -> None:
    """A client that does not read: what was made for it lies in the sockets, not in the gateway."""
    grown = Peak()
    with httpx.stream("GET", f"{gateway}/blob?mb={BIG}", timeout=20, trust_env=False) as response:
        next(response.iter_raw(1))
        for _ in range(20):
            assert ask(gateway + "/digest").status_code == 200  # others are served meanwhile
    assert grown.bytes() < MAY_GROW


def test_not_ready_pipeline_refuses_at_once_with_its_reason(gateway: str, source: FakeSource) -> None:
    source.word.state, source.word.reason = "restarting", "stage 1 was killed by SIGKILL"
    answer = httpx.post(gateway + "/hang", content=b"x" * 100_000, trust_env=False)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    error = answer.json()["error"]
    assert error["message"] == "the pipeline is restarting: stage 1 was killed by SIGKILL"
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)


class Peak:
    """Growth of this process's resident memory, the gateway's thread included, since it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # peak := now. Source: proc(5).
        self._before = self._peak()

    def bytes(self) -> int:
        return self._peak() - self._before

    def _peak(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
