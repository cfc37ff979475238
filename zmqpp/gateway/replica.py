"""One pipeline behind the entry: what is known of it, and whether it takes requests now."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from zmqpp.gateway.client import Refusal
from zmqpp.gateway.entrance import DRAINED, Entrance
from zmqpp.gateway.source import Source, merged, unready
from zmqpp.gateway.upstream import Upstream
from zmqpp.watch.prometheus import render
from zmqpp.watch.status import PipelineStatus

__all__ = ["HELD", "READY", "WAITS", "Health", "Replica"]

_STATUS_S = 2.0
_METRICS_S = 5.0
# Stage 0 then leaves out our metrics, which the gateway renders itself from what both know.
_FROM_GATEWAY = [(b"x-zmqpp-gateway", b"1")]
READY, WAITS, HELD, _OUT = range(4)


@dataclass(frozen=True)
class Health:
    """An answer to /health."""

    code: int
    body: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        return self.code == 200


@dataclass(frozen=True, eq=False)
class Replica:
    """The only one has number 0. Thread: the gateway's loop."""

    number: int
    upstream: Upstream
    source: Source
    """The launcher's word on it."""
    entrance: Entrance

    def obstacle(self) -> str | None:
        """Why requests cannot be taken now, as the launcher knows it; while a stage is replaced stage 0 keeps them."""
        status = self.source.status()
        stage_0_keeps = status.state == "recovering" and all(s.state == "ready" for s in status.stages[:1])
        return None if status.state == "ready" or stage_0_keeps else _why(status)

    def reason_against(self) -> str | None:
        """What can be said before a request's body is asked for."""
        if self.entrance.draining:
            return DRAINED
        return None if self.entrance.held else self.obstacle()

    def rank(self) -> int:
        """How soon a request is served: at once (READY), when a stage is back (WAITS), when stage 0 is; or never."""
        if self.entrance.draining:
            return _OUT
        if self.entrance.held:
            return HELD
        if self.source.status().state == "ready":
            return READY
        return WAITS if self.obstacle() is None else _OUT

    @property
    def outstanding(self) -> int:
        """Requests that have no whole answer yet, and those that wait to come in."""
        return self.entrance.running + self.entrance.waiting

    async def status(self) -> PipelineStatus:
        """What the launcher says and stage 0 measures."""
        answer = await self.upstream.get("/pipeline/status", _STATUS_S)
        theirs = None
        if answer is not None and answer.status_code == 200:
            try:
                theirs = msgspec.json.decode(answer.content, type=PipelineStatus)
            except msgspec.MsgspecError:
                pass  # Not a stage of ours that listens there; the launcher's word stands alone.
        return merged(self.source.status(), theirs)

    async def metrics(self) -> bytes:
        """Ours, then vLLM's: one page for one scrape."""
        status, answer = await asyncio.gather(
            self.status(), self.upstream.get("/metrics", _METRICS_S, _FROM_GATEWAY)
        )
        text = render(status).encode()
        if answer is not None and answer.status_code == 200:
            text += answer.content
        return text

    async def health(self) -> Health:
        status, answer = await asyncio.gather(self.status(), self.upstream.get("/health", _STATUS_S))
        missing = unready(status)
        if self.entrance.draining:
            reason = f"new requests are refused; {self.entrance.running} run"
            return Health(503, {"status": "draining", "state": status.state, "reason": reason, "stages": []})
        if status.state == "ready" and not missing and answer is not None and answer.status_code == 200:
            return Health(200, {"status": "ok"})
        reason = _why(status) if status.state != "ready" or missing else _stage_0_says(answer)
        stages = [{"stage": stage.stage, "state": stage.state, "reason": stage.reason} for stage in missing]
        word = "degraded" if status.state == "recovering" else "unavailable"
        return Health(503, {"status": word, "state": status.state, "reason": reason, "stages": stages})

    def refusal(self, reason: str) -> Refusal:
        return Refusal(503, "ServiceUnavailableError", reason)


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
