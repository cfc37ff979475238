"""What stage 0's own HTTP server knows of the pipeline: vLLM middleware that answers a few more paths.

    /pipeline           the page                        /pipeline/trace?seconds=5   a Chrome trace
    /pipeline/status    the status as JSON              /metrics                    vLLM's, and then ours

Source: vLLM's `--middleware`, an ASGI class named by its import path. Like vLLM's /metrics, none asks for an API key.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zmqpp.errors import ConfigError
from zmqpp.vllm.calls import END_TRACE, START_TRACE
from zmqpp.watch import prometheus, snapshot
from zmqpp.watch.page import PAGE_HEADERS, page
from zmqpp.watch.trace import read_seconds

GATEWAY_HEADER = b"x-zmqpp-gateway"
"""A gateway has figures of its own, and asks for vLLM's alone."""
_encoder = msgspec.json.Encoder()


_LOOK_S = 0.2


class PipelineRoutes:
    """Answers the paths above; everything else is vLLM's."""

    def __init__(self, app: ASGIApp) -> None:
        self._vllm = app
        self._tracing = asyncio.Lock()
        ours = {"/pipeline": _page, "/pipeline/status": _status, "/pipeline/trace": self._trace}
        self._ours = Starlette(routes=[Route(path, answer) for path, answer in ours.items()])
        self._paths = frozenset(ours)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path") if scope["type"] == "http" else None
        if path in self._paths:
            # Starlette puts itself into the scope; the engine's client hangs on vLLM's own application.
            await self._ours({**scope, "vllm": scope["app"]}, receive, send)
        elif path == "/health" and (reason := _degraded()):
            answer = JSONResponse({"status": "degraded", "reason": reason}, status_code=503)
            await answer(scope, receive, send)
        elif path == "/metrics" and not any(name == GATEWAY_HEADER for name, _ in scope["headers"]):
            await self._metrics(scope, receive, send)
        else:
            await self._vllm(scope, receive, send)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's answer, made longer; asked for as plain text, which can be."""
        wanted = (b"accept", b"accept-encoding")
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in wanted]
        status = snapshot.read()
        more = prometheus.render(status).encode() if status is not None else b""

        async def longer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [h for h in message["headers"] if h[0].lower() != b"content-length"]
                message = {**message, "headers": headers}
            elif not message.get("more_body"):
                message = {**message, "body": message.get("body", b"") + more}
            await send(message)

        await self._vllm(scope, receive, longer)

    async def _trace(self, request: Request) -> Response:
        """Watch all stages for `seconds`; one trace at a time."""
        try:
            seconds = read_seconds(request.query_params.get("seconds", "5"))
        except ConfigError as error:
            return _refusal(400, str(error))
        if self._tracing.locked():
            return _refusal(409, "another trace is being taken: try again when it is done")
        async with self._tracing:
            engine: Any = request.scope["vllm"].state.engine_client
            await engine.collective_rpc(START_TRACE)
            await _while_connected(request, seconds)
            [trace] = await engine.collective_rpc(END_TRACE)
        return Response(trace, media_type="application/json")


async def _while_connected(request: Request, seconds: float) -> None:
    """Wait, unless the client leaves: the next one need not wait for a trace nobody takes."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not await request.is_disconnected():
        await asyncio.sleep(min(left, _LOOK_S))


def _degraded() -> str:
    """Why requests have to wait; vLLM itself is in good health meanwhile."""
    status = snapshot.read()
    return status.reason if status is not None and status.state == "recovering" else ""


async def _page(request: Request) -> Response:
    return Response(page(), headers=PAGE_HEADERS)


async def _status(request: Request) -> Response:
    status = snapshot.read()
    if status is None:
        return _refusal(503, "the engine has not said anything yet")
    return Response(_encoder.encode(status), media_type="application/json")


def _refusal(code: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status_code=code)
