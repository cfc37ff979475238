"""One request's way to stage 0, and its answer's way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.types import Scope, Send

from zmqpp.gateway.client import Refusal, refuse
from zmqpp.gateway.headers import Headers, first, of_request, of_response
from zmqpp.gateway.upstream import Upstream

__all__ = ["KINDS", "Answer", "Exchange", "has_body", "target"]

KINDS = {
    400: "BadRequestError",
    413: "RequestTooLargeError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
}


class Answer:
    """Stage 0's. The caller closes it."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = of_response(response.headers.raw)
        self._response = response
        # Raw: a compressed body stays as it is. Each piece is what one read of the socket gave.
        self._pieces = response.aiter_raw()
        self._had: list[bytes] = []

    async def await_body(self) -> None:
        """Until its first piece is there, or it is known to have none."""
        try:
            self._had.append(await anext(self._pieces))
        except StopAsyncIteration:
            pass

    async def read(self) -> bytes:
        """All of it."""
        self._had = [b"".join([piece async for piece in self.pieces()])]
        return self._had[0]

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self._had:
            yield piece
        async for piece in self._pieces:
            yield piece

    @property
    def is_of_a_failure(self) -> bool:
        """Whether it may be the last word of a pipeline that has failed: vLLM answers so, or begins a stream so."""
        return self.status in (500, 502, 503) or b"".join(self._had).startswith(b'data: {"error"')

    async def close(self) -> None:
        await self._response.aclose()


class Exchange:
    """One request's way to stage 0, and its answer's way back."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._headers: Headers | None = None
        self._at_event_end = True
        self.path = str(scope["path"])
        self.client_gone = False

    @property
    def has_begun(self) -> bool:
        """Whether the client has something of an answer."""
        return self._headers is not None

    async def begin(self, upstream: Upstream, pieces: AsyncIterator[bytes]) -> Answer:
        """Send the request, with these pieces if it has a body; returns when the headers of the answer are there.

        Raises:
            httpx.TransportError: stage 0 failed before.
        """
        scope = self._scope
        body = pieces if has_body(scope) else None
        return Answer(await upstream.send(scope["method"], target(scope), of_request(scope), body))

    async def pass_on(self, answer: Answer) -> None:
        """To the client, and close it; raises httpx.TransportError when stage 0 fails in the middle."""
        try:
            await self._pass_on(answer)
        finally:
            await answer.close()

    async def _pass_on(self, answer: Answer) -> None:
        await self._send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        self._headers = answer.headers
        async for piece in answer.pieces():
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._at_event_end = piece.endswith((b"\n\n", b"\r\n\r\n"))
            # One read may hold thousands of pieces: others get their turn, and a client that left is noticed.
            await asyncio.sleep(0)
        await self._send({"type": "http.response.body", "body": b""})

    async def pass_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer that is there."""
        self._headers = headers
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, status: int, reason: str) -> None:
        """End the client's response as clearly as its state allows."""
        refusal = Refusal(status, KINDS.get(status, KINDS[502]), reason)
        if self._headers is None:
            await refuse(self._send, refusal)
        elif _takes_events(self._headers):
            event = b"data: " + refusal.encoded() + b"\n\n"
            gap = b"" if self._at_event_end else b"\n\n"
            await self._send({"type": "http.response.body", "body": gap + event})
        # Else it stays incomplete: the server closes the connection, and the client sees it was cut.


def target(scope: Scope) -> bytes:
    """Path and query as they came, escapes included."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def has_body(scope: Scope) -> bool:
    headers = scope["headers"]
    return bool(first(headers, b"transfer-encoding")) or first(headers, b"content-length") not in (b"", b"0")


def _takes_events(headers: Headers) -> bool:
    plain = not first(headers, b"content-encoding") and not first(headers, b"content-length")
    return plain and first(headers, b"content-type").startswith(b"text/event-stream")
