"""Adapters that were loaded while the replicas run: a stage 0 that is started anew gets them.

Until it has them, requests go to it only where no other replica is ready.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence

import httpx

from zmqpp.gateway.headers import Headers
from zmqpp.gateway.replica import Replica

__all__ = ["LOAD", "UNLOAD", "Adapters", "has_been_done"]

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_LOOK_S = 0.2
_LOAD_S = 60.0


class Adapters:
    """Thread: the gateway's loop; `run` in a task of its own."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._loaded: dict[str, tuple[bytes, Headers]] = {}
        """Body and authorization of the request that loaded each, by its name."""
        self._pids: dict[int, int] = {}
        """Of the stage 0 of each replica that has all of them."""

    def note(self, path: str, headers: Headers, body: bytes) -> None:
        """All replicas did what was asked of them, by a request with these headers."""
        try:
            name = str(json.loads(body)["lora_name"])
        except (ValueError, KeyError, TypeError):
            return
        if path == LOAD:
            if not self._loaded:
                self._pids = {replica.number: _pid(replica) for replica in self._replicas}
            self._loaded[name] = body, [field for field in headers if field[0] == b"authorization"]
        elif path == UNLOAD:
            self._loaded.pop(name, None)

    def lacks(self, replica: Replica) -> bool:
        """Whether its stage 0 is a new one, which does not have them yet."""
        return bool(self._loaded) and self._pids.get(replica.number) != _pid(replica)

    async def run(self) -> None:
        """Bring those up to date that are ready and lack some; until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for replica in self._replicas:
                if self.lacks(replica) and replica.source.status().state == "ready":
                    await self._bring(replica)

    async def _bring(self, replica: Replica) -> None:
        pid = _pid(replica)
        for name, (body, authorization) in list(self._loaded.items()):
            if reason := await _load(replica, body, authorization):
                who = f"replica {replica.number}: its new stage 0 could not load adapter {name!r}"
                print(f"zmqpp: warning: {who}: {reason}", file=sys.stderr)
        # Also where one could not: the others are served.
        self._pids[replica.number] = pid


async def _load(replica: Replica, body: bytes, authorization: Headers) -> str:
    """Why it could not; empty when it has it now, or had it already (400)."""
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *authorization,
    ]
    try:
        async with asyncio.timeout(_LOAD_S):
            response = await replica.upstream.send("POST", LOAD.encode(), headers, _once(body))
            try:
                text = (await response.aread()).decode(errors="replace")
            finally:
                await response.aclose()
    except (TimeoutError, httpx.HTTPError) as error:
        return str(error) or type(error).__name__
    if has_been_done(LOAD, response.status_code, text):
        return ""
    return f"{response.status_code}: {text[:300]}"


def has_been_done(path: str, status: int, text: str) -> bool:
    """Whether this answer says that it is done now, or was done before.

    Source: load_lora_adapter, unload_lora_adapter (vllm/entrypoints/openai/models/serving.py).
    """
    if path == LOAD:
        return status < 400 or (status == 400 and "already" in text)
    return status < 400 or (path == UNLOAD and status == 404)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _pid(replica: Replica) -> int:
    stages = replica.source.status().stages
    return stages[0].pid if stages else 0
