"""The application of the gateway: its own answers, and everything else passed through to stage 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from zmqpp.gateway.entrance import Entrance
from zmqpp.gateway.proxy import Proxy
from zmqpp.gateway.source import Source, merged, unready
from zmqpp.gateway.upstream import Upstream
from zmqpp.watch.page import PAGE_HEADERS, page
from zmqpp.watch.prometheus import CONTENT_TYPE, render
from zmqpp.watch.status import PipelineStatus

__all__ = ["build_app"]

_STATUS_S = 2.0
_METRICS_S = 5.0
_RETRY = {"retry-after": "5"}
_NOT_STORED = {"cache-control": "no-store"}
# Stage 0 then leaves out our metrics, which the gateway renders itself from what both know.
_FROM_GATEWAY = [(b"x-zmqpp-gateway", b"1")]


def build_app(upstream: str, source: Source, entrance: Entrance | None = None) -> Starlette:
    """The gateway's ASGI application.

    Args:
        upstream: `http://HOST:PORT` of stage 0.
        source: the launcher's word on the pipeline.
        entrance: for whoever is to close it.
    Raises:
        ConfigError: `upstream` is no such address.
    """
    entrance = entrance or Entrance()
    own = _Own(Upstream(upstream), source, entrance)
    routes = [
        Route("/health", own.health),
        Route("/pipeline/status", own.status),
        Route("/metrics", own.metrics),
        Route("/pipeline", own.page),
        Route("/", own.home),
    ]
    app = Starlette(routes=routes, lifespan=own.lifespan)
    app.router.redirect_slashes = False
    # Not a route: a pattern would be matched against the decoded path.
    app.router.default = Proxy(own.upstream, entrance, own.obstacle)
    return app


class _Own:
    """What the gateway answers itself."""

    def __init__(self, upstream: Upstream, source: Source, entrance: Entrance) -> None:
        self.upstream = upstream
        self._source = source
        self._entrance = entrance

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.upstream.close()

    def obstacle(self) -> str | None:
        """Why requests cannot be taken now, as the launcher knows it; while a stage is replaced stage 0 keeps them."""
        status = self._source.status()
        stage_0_keeps = status.state == "recovering" and all(s.state == "ready" for s in status.stages[:1])
        return None if status.state == "ready" or stage_0_keeps else _why(status)

    async def health(self, _request: Request) -> Response:
        status, answer = await asyncio.gather(self._merged(), self.upstream.get("/health", _STATUS_S))
        missing = unready(status)
        if self._entrance.draining:
            reason = f"new requests are refused; {self._entrance.running} run"
            drained = {"status": "draining", "state": status.state, "reason": reason, "stages": []}
            return JSONResponse(drained, 503, headers=_RETRY | _NOT_STORED)
        if status.state == "ready" and not missing and answer is not None and answer.status_code == 200:
            return JSONResponse({"status": "ok"}, headers=_NOT_STORED)
        reason = _why(status) if status.state != "ready" or missing else _stage_0_says(answer)
        stages = [{"stage": stage.stage, "state": stage.state, "reason": stage.reason} for stage in missing]
        word = "degraded" if status.state == "recovering" else "unavailable"
        body = {"status": word, "state": status.state, "reason": reason, "stages": stages}
        return JSONResponse(body, 503, headers=_RETRY | _NOT_STORED)

    async def status(self, _request: Request) -> Response:
        encoded = msgspec.json.encode(await self._merged())
        return Response(encoded, media_type="application/json", headers=_NOT_STORED)

    async def metrics(self, _request: Request) -> Response:
        """Ours, then vLLM's: one page for one scrape."""
        status, answer = await asyncio.gather(
            self._merged(), self.upstream.get("/metrics", _METRICS_S, _FROM_GATEWAY)
        )
        text = render(status).encode()
        if answer is not None and answer.status_code == 200:
            text += answer.content
        return Response(text, headers={"content-type": CONTENT_TYPE} | _NOT_STORED)

    async def page(self, _request: Request) -> Response:
        return Response(page(), headers=PAGE_HEADERS)

    async def home(self, _request: Request) -> Response:
        """Stage 0 has nothing at this path."""
        return RedirectResponse("pipeline", 307)

    async def _merged(self) -> PipelineStatus:
        answer = await self.upstream.get("/pipeline/status", _STATUS_S)
        theirs = None
        if answer is not None and answer.status_code == 200:
            try:
                theirs = msgspec.json.decode(answer.content, type=PipelineStatus)
            except msgspec.MsgspecError:
                pass  # Not a stage of ours that listens there; the launcher's word stands alone.
        return merged(self._source.status(), theirs)


def _why(status: PipelineStatus) -> str:
    stages = ", ".join(
        f"stage {stage.stage} is {stage.state}" + (f" ({stage.reason})" if stage.reason else "")
        for stage in unready(status)
    )
    text = f"the pipeline is {status.state}" if status.state != "ready" else "the pipeline is incomplete"
    return ": ".join(part for part in (text, status.reason or stages) if part)


def _stage_0_says(answer: object) -> str:
    code = getattr(answer, "status_code", None)
    return f"stage 0 answers {code} to /health" if code else "stage 0 does not answer"
