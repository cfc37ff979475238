"""A server that says of its pipeline what the test wants, and completes prompts when it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from zmqpp.gateway.server import GatewayServer
from zmqpp.watch.page import PAGE_HEADERS, page
from zmqpp.watch.status import (
    Event,
    Layers,
    LinkCounters,
    Memory,
    PipelineStatus,
    Recent,
    StageStatus,
)


class Scripted:
    """`status` is what `/pipeline/status` says; `gate` lets the next word of an answer go."""

    def __init__(self, status: PipelineStatus) -> None:
        self.status = status
        self.gate = threading.Semaphore(0)
        self.asked: list[dict[str, object]] = []
        self.aborted = threading.Event()
        self.words = ["city", " of", " hills"]
        self.refusal: tuple[int, str] | None = None
        self.breaks_with: str | None = None

    def app(self, prefix: str = "") -> Starlette:
        routes = [
            Route("/pipeline", lambda _: Response(page(), headers=PAGE_HEADERS)),
            Route("/pipeline/status", self._status),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        return Starlette(routes=[Mount(prefix, routes=routes)] if prefix else routes)

    async def _status(self, _request: Request) -> Response:
        self.status.at = time.time()
        return Response(msgspec.json.encode(self.status), media_type="application/json")

    async def _complete(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.refusal is not None:
            code, message = self.refusal
            return JSONResponse({"error": {"message": message, "code": code}}, code)
        return StreamingResponse(self._answer(), media_type="text/event-stream")

    async def _answer(self):  # type: ignore[no-untyped-def]
        try:
            for word in self.words:
                while not self.gate.acquire(blocking=False):
                    await asyncio.sleep(0.005)
                yield f"data: {json.dumps({'choices': [{'text': word}]})}\n\n"
            if self.breaks_with:
                yield f"data: {json.dumps({'error': {'message': self.breaks_with}})}\n\n"
                return
            usage = {"choices": [], "usage": {"completion_tokens": len(self.words)}}
            yield f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted.set()
            raise


@contextmanager
def serving(script: Scripted, port: int = 0, prefix: str = "") -> Iterator[str]:
    with GatewayServer(script.app(prefix), "127.0.0.1", port) as server:
        yield server.url


def pipeline(stages: int, layers_each: int = 8) -> PipelineStatus:
    """A pipeline that runs, with figures of a size a person would see."""
    now = time.time()
    return PipelineStatus(
        "ready",
        [_stage(index, stages, layers_each, now) for index in range(stages)],
        since=now - 754,
        model="meta-llama/Llama-3-8B",
        total_stages=stages,
        in_flight=stages,
        steps=48210,
        tokens=391552,
        tokens_per_s=412.6,
        bubble=0.083,
        bubble_total=0.121,
        restarts=1,
        recoveries=1,
        events=[
            Event(now - 754, "ready", f"all {stages} stages are ready after 41.2 s"),
            Event(now - 311, "lost", "stage 1 (pid 4712) was killed by SIGKILL", 1),
            Event(now - 310, "restarting", "stage 1 is started again", 1),
            Event(now - 302, "recovered", "16 requests go on, none lost; 9.1 s", 1),
        ],
    )


def _stage(index: int, stages: int, layers_each: int, now: float) -> StageStatus:
    last = index == stages - 1
    compute = 0.78 - 0.05 * (index % 3)
    return StageStatus(
        index,
        "ready",
        since=now - 754,
        host=f"10.0.0.{index // 2 + 1}",
        pid=4711 + index,
        device="NVIDIA H200" if index % 2 == 0 else "NVIDIA H100",
        layers=Layers(index * layers_each, (index + 1) * layers_each, stages * layers_each),
        parameters=2_007_500_000,
        memory=Memory(
            resident_bytes=3_100_000_000, device_bytes=21_400_000_000, kv_cache_bytes=16_000_000_000
        ),
        link=LinkCounters(lane=None if last else "shm" if index % 2 == 0 else "tcp", bytes_sent=10**9),
        steps=48210,
        tokens=512_000,
        queue=index % 3,
        recent=Recent(
            window_s=10.0,
            tokens_per_s=418.2,
            steps_per_s=51.6,
            bytes_sent_per_s=21_000.0 if last else 34_600_000.0 + 1_000_000 * index,
            compute=compute,
            wait=0.96 - compute - 0.04,
            send=0.04,
            idle=0.04,
            step_s=0.0131,
            hop_s=0.00034 if index else 0.0,
        ),
        seen_at=now,
        log=f"logs/stage_{index}.log",
    )
