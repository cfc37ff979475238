"""Passing requests through to stage 0, piece by piece both ways, for exactly as long as the client stays.

    client ── receive() ──> Client.read ──(one piece)──> Upstream.send ──> stage 0
    client <── send() ───── _Exchange.run <──(one chunk)── response ────── stage 0

Whichever side ends first ends the other: a client that hangs up closes the connection to stage 0, so that vLLM
aborts the generation; a stage 0 that dies leaves the client an error, not a silent truncation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
from starlette.types import Receive, Scope, Send

from zmqpp.gateway.client import Client, Refusal, refuse
from zmqpp.gateway.entrance import DRAINED, Entrance
from zmqpp.gateway.headers import Headers, first, of_request, of_response
from zmqpp.gateway.upstream import Upstream

__all__ = ["Proxy"]

_KINDS = {400: "BadRequestError", 502: "BadGatewayError", 503: "ServiceUnavailableError"}
_NOTICE_S = 0.5
"""How long the launcher gets to find out which stage died before a client is told that one did."""


class Proxy:
    """An ASGI application.

    Args:
        entrance: lets requests in, and counts them.
        obstacle: says why the pipeline cannot take requests now; None when it can.
    """

    def __init__(self, upstream: Upstream, entrance: Entrance, obstacle: Callable[[], str | None]) -> None:
        self._upstream = upstream
        self._entrance = entrance
        self._obstacle = obstacle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if first(scope["headers"], b"upgrade") == b"websocket":
            refusal = Refusal(
                501,
                "NotImplementedError",
                "this address passes no WebSockets on; connect to stage 0's own port",
            )
            return await refuse(send, refusal, [(b"connection", b"close")])
        if reason := self._reason_against():
            return await refuse(send, Refusal(503, _KINDS[503], reason))
        await self._pass(_Exchange(self._upstream, scope, send), Client(receive))

    async def _pass(self, exchange: _Exchange, client: Client) -> None:
        reading = asyncio.create_task(client.read())
        passing = asyncio.create_task(self._admitted(exchange, client))
        try:
            await asyncio.wait((reading, passing), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The server is being stopped. Not raised again: it has nobody to tell but the log.
            await _ended(passing)
            return await exchange.fail(503, self._obstacle() or "the pipeline is being stopped")
        finally:
            if reading.done() and not passing.done():
                exchange.client_gone = True
            await _ended(reading)
            failure = await _ended(passing)
        if isinstance(failure, Refusal) and not exchange.client_gone:
            await exchange.fail(failure.status, str(failure))
        elif isinstance(failure, httpx.LocalProtocolError) and not exchange.client_gone:
            await exchange.fail(400, f"this request cannot be passed on: {failure}")
        elif isinstance(failure, httpx.TransportError) and not exchange.client_gone:
            unreached = isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout))
            await exchange.fail(503 if unreached else 502, await self._explain(failure))
        elif failure is not None and not isinstance(failure, asyncio.CancelledError | Refusal):
            raise failure

    def _reason_against(self) -> str | None:
        """What can be said before the request's body is asked for."""
        if self._entrance.draining:
            return DRAINED
        return None if self._entrance.held else self._obstacle()

    async def _admitted(self, exchange: _Exchange, client: Client) -> None:
        """Raises Refusal when it is not let in, else as the exchange does."""
        await self._entrance.enter()
        try:
            if reason := self._obstacle():  # It may have waited.
                raise Refusal(503, _KINDS[503], reason)
            await exchange.run(client)
        finally:
            self._entrance.leave()

    async def _explain(self, failure: httpx.TransportError) -> str:
        for _ in range(10):
            if reason := self._obstacle():
                return reason
            await asyncio.sleep(_NOTICE_S / 10)
        what = str(failure) or type(failure).__name__
        return f"stage 0 at {self._upstream.address} went away: {what}"


class _Exchange:
    """One request's way to stage 0, and its answer's way back."""

    def __init__(self, upstream: Upstream, scope: Scope, send: Send) -> None:
        self._upstream = upstream
        self._scope = scope
        self._send = send
        self._headers: Headers | None = None
        self._at_event_end = True
        self.client_gone = False

    async def run(self, client: Client) -> None:
        """Raises httpx.TransportError when stage 0 fails, before its answer began or in the middle."""
        scope = self._scope
        response = await self._upstream.send(
            scope["method"], _target(scope), of_request(scope), client.body() if _has_body(scope) else None
        )
        client.drop_body()
        try:
            await self._answer(response)
        finally:
            await response.aclose()

    async def _answer(self, response: httpx.Response) -> None:
        headers = of_response(response.headers.raw)
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        self._headers = headers
        # Raw: a compressed body stays as it is. Each piece is what one read of the socket gave.
        async for piece in response.aiter_raw():
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._at_event_end = piece.endswith((b"\n\n", b"\r\n\r\n"))
            # One read may hold thousands of pieces: others get their turn, and a client that left is noticed.
            await asyncio.sleep(0)
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, status: int, reason: str) -> None:
        """End the client's response as clearly as its state allows."""
        refusal = Refusal(status, _KINDS[status], reason)
        if self._headers is None:
            await refuse(self._send, refusal)
        elif _takes_events(self._headers):
            event = b"data: " + refusal.encoded() + b"\n\n"
            gap = b"" if self._at_event_end else b"\n\n"
            await self._send({"type": "http.response.body", "body": gap + event})
        # Else it stays incomplete: the server closes the connection, and the client sees it was cut.


def _target(scope: Scope) -> bytes:
    """Path and query as they came, escapes included."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return bool(first(headers, b"transfer-encoding")) or first(headers, b"content-length") not in (b"", b"0")


def _takes_events(headers: Headers) -> bool:
    plain = not first(headers, b"content-encoding") and not first(headers, b"content-length")
    return plain and first(headers, b"content-type").startswith(b"text/event-stream")


async def _ended(task: asyncio.Task[None]) -> BaseException | None:
    """Cancel it unless it is done, wait for its end, and return what it raised."""
    task.cancel()
    await asyncio.wait((task,))
    return asyncio.CancelledError() if task.cancelled() else task.exception()
