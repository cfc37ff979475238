"""The application of the gateway: its own answers, and everything else passed through to a stage 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from zmqpp.errors import ConfigError
from zmqpp.gateway.choice import Choice
from zmqpp.gateway.entrance import Entrance
from zmqpp.gateway.joined import joined_health, joined_metrics, joined_status, joined_trace
from zmqpp.gateway.proxy import Proxy
from zmqpp.gateway.replica import Replica
from zmqpp.gateway.source import Source
from zmqpp.gateway.upstream import Upstream
from zmqpp.watch.page import PAGE_HEADERS, page
from zmqpp.watch.prometheus import CONTENT_TYPE
from zmqpp.watch.status import PipelineStatus
from zmqpp.watch.trace import read_seconds

__all__ = ["build_app", "build_replicated_app"]

_RETRY = {"retry-after": "5"}
_NOT_STORED = {"cache-control": "no-store"}
_TRACE_S = 60.0
"""Beyond the seconds that a trace is to take."""


def build_app(upstream: str, source: Source, entrance: Entrance | None = None) -> Starlette:
    """The gateway's ASGI application, for one pipeline.

    Args:
        upstream: `http://HOST:PORT` of stage 0.
        source: the launcher's word on the pipeline.
        entrance: for whoever is to close it.
    Raises:
        ConfigError: `upstream` is no such address.
    """
    return build_replicated_app([Replica(0, Upstream(upstream), source, entrance or Entrance())])


def build_replicated_app(replicas: Sequence[Replica]) -> Starlette:
    """The same for several pipelines of one model, numbered from 0 in their order."""
    choice = Choice(replicas)
    own = _Own(choice)
    routes = [
        Route("/health", own.health),
        Route("/pipeline/status", own.status),
        Route("/metrics", own.metrics),
        Route("/pipeline", own.page),
        Route("/", own.home),
    ]
    if len(replicas) > 1:
        routes.append(Route("/pipeline/trace", own.trace))
    app = Starlette(routes=routes, lifespan=own.lifespan)
    app.router.redirect_slashes = False
    # Not a route: a pattern would be matched against the decoded path.
    app.router.default = Proxy(choice)
    return app


class _Own:
    """What the gateway answers itself. Of one replica, where `?replica=1` asks for it."""

    def __init__(self, choice: Choice) -> None:
        self._replicas, self._choice = choice.replicas, choice

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        bringing = asyncio.create_task(self._choice.adapters.run()) if self._choice.are_several else None
        try:
            yield
        finally:
            if bringing is not None:
                bringing.cancel()
                await asyncio.wait((bringing,))
            for replica in self._replicas:
                await replica.upstream.close()

    async def health(self, request: Request) -> Response:
        asked = self._asked(request)
        if asked is None:
            return _no_replica(len(self._replicas))
        each = await asyncio.gather(*(replica.health() for replica in asked))
        health = each[0] if len(each) == 1 else joined_health(each)
        if health.is_ok:
            return JSONResponse(health.body, headers=_NOT_STORED)
        return JSONResponse(health.body, health.code, headers=_RETRY | _NOT_STORED)

    async def status(self, request: Request) -> Response:
        asked = self._asked(request)
        if asked is None:
            return _no_replica(len(self._replicas))
        encoded = msgspec.json.encode(await _status(asked))
        return Response(encoded, media_type="application/json", headers=_NOT_STORED)

    async def metrics(self, _request: Request) -> Response:
        pages = await asyncio.gather(*(replica.metrics() for replica in self._replicas))
        text = pages[0] if len(pages) == 1 else joined_metrics(pages)
        return Response(text, headers={"content-type": CONTENT_TYPE} | _NOT_STORED)

    async def trace(self, request: Request) -> Response:
        """Of all replicas at once, or of one."""
        asked = self._asked(request)
        if asked is None:
            return _no_replica(len(self._replicas))
        try:
            seconds = read_seconds(request.query_params.get("seconds", "5"))
        except ConfigError as error:
            return _refusal(400, str(error))
        path = f"/pipeline/trace?seconds={seconds:g}"
        answers = await asyncio.gather(*(one.upstream.get(path, seconds + _TRACE_S) for one in asked))
        for replica, answer in zip(asked, answers, strict=True):
            if answer is None or answer.status_code != 200:
                said = (
                    "did not answer"
                    if answer is None
                    else f"answers {answer.status_code}: {answer.text[:300]}"
                )
                return _refusal(503, f"replica {replica.number} {said}; ?replica=I asks one alone")
        traces = [msgspec.json.decode(answer.content) for answer in answers if answer is not None]
        whole = traces[0] if len(traces) == 1 else joined_trace(traces)
        return Response(msgspec.json.encode(whole), media_type="application/json", headers=_NOT_STORED)

    async def page(self, _request: Request) -> Response:
        return Response(page(), headers=PAGE_HEADERS)

    async def home(self, _request: Request) -> Response:
        """Stage 0 has nothing at this path."""
        return RedirectResponse("pipeline", 307)

    def _asked(self, request: Request) -> Sequence[Replica] | None:
        """None where there is no such replica."""
        text = request.query_params.get("replica")
        if text is None:
            return self._replicas
        found = [replica for replica in self._replicas if str(replica.number) == text]
        return found or None


async def _status(replicas: Sequence[Replica]) -> PipelineStatus:
    statuses = await asyncio.gather(*(replica.status() for replica in replicas))
    if len(statuses) == 1:
        return statuses[0]
    return joined_status(statuses, [replica.outstanding for replica in replicas])


def _no_replica(total: int) -> Response:
    return _refusal(404, f"there is no such replica: they are 0 to {total - 1}")


def _refusal(code: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": code}}, status_code=code)
