"""Stage 0 as the gateway sees it: an HTTP server that streams, hangs, dies, echoes, and remembers who hung up.

python -m tests.gateway.fake_stage STATUS_JSON    prints its port; ends with its parent's pipe
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
from typing import Any
from urllib.parse import parse_qs

import uvicorn

Scope = dict[str, Any]
PIECE = b"\xab" * (1 << 20)
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


class FakeStage:
    """The ASGI application. `/go` lets waiting streams go on; `/aborts` lists the paths that were hung up on."""

    def __init__(self, status: bytes | None) -> None:
        self._status = status
        self._aborts: list[str] = []
        self._begun: list[str] = []
        self._gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        name = scope["path"].strip("/").split("/")[0].replace("-", "_") or "root"
        if scope["path"] == "/pipeline/status":
            name = "status"
        answer = getattr(self, f"on_{name}", self.on_digest)
        await answer(scope, receive, send)

    async def on_go(self, _scope: Scope, _receive: Any, send: Any) -> None:
        self._gate.set()
        await whole(send, b"{}")

    async def on_aborts(self, _scope: Scope, _receive: Any, send: Any) -> None:
        await whole(send, json.dumps({"begun": self._begun, "aborts": self._aborts}).encode())

    async def on_status(self, _scope: Scope, _receive: Any, send: Any) -> None:
        if self._status is None:
            return await whole(send, b'{"detail":"Not Found"}', 404)
        await whole(send, self._status)

    async def on_health(self, _scope: Scope, _receive: Any, send: Any) -> None:
        await whole(send, b"")

    async def on_metrics(self, scope: Scope, _receive: Any, send: Any) -> None:
        ours = b"" if (b"x-zmqpp-gateway", b"1") in scope["headers"] else b"zmqpp_doubled 1.0\n"
        text = b"# HELP vllm:x A metric of vLLM.\n# TYPE vllm:x gauge\nvllm:x 1.0\n"
        await whole(send, text + ours, kind=b"text/plain; version=0.0.4")

    async def on_digest(self, scope: Scope, receive: Any, send: Any) -> None:
        """What arrived, as JSON; each header twice where it came twice."""
        digest, size, more = hashlib.sha256(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._aborts.append(scope["path"])
                return
            digest.update(message.get("body", b""))
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        seen = {
            "method": scope["method"],
            "target": scope["raw_path"].decode() + "?" + scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
            "size": size,
            "sha256": digest.hexdigest(),
        }
        await whole(send, json.dumps(seen).encode())

    async def on_blob(self, scope: Scope, _receive: Any, send: Any) -> None:
        count = int(parse_qs(scope["query_string"].decode())["mb"][0])
        headers = [(b"content-length", str(count * len(PIECE)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(count):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def on_cookies(self, _scope: Scope, _receive: Any, send: Any) -> None:
        headers = [
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"content-encoding", b"x-odd"),
            (b"connection", b"x-private"),
            (b"x-private", b"for this connection alone"),
            (b"x-request-id", b"made-upstream"),
            (b"content-length", b"4"),
        ]
        await send({"type": "http.response.start", "status": 418, "headers": headers})
        await send({"type": "http.response.body", "body": b"\x00\x01\x02\x03"})

    async def on_sse(self, _scope: Scope, _receive: Any, send: Any) -> None:
        """One event, then one more for each /go."""
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        for number in range(3):
            event = f'data: {{"n": {number}}}\n\n'.encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await self._gate.wait()
            self._gate.clear()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def on_wait(self, scope: Scope, receive: Any, send: Any) -> None:
        """As any other path, but after /go."""
        self._begun.append(scope["path"])
        await self._gate.wait()
        await self.on_digest(scope, receive, send)

    async def on_late(self, scope: Scope, receive: Any, send: Any) -> None:
        """Headers at once, and the one event after /go."""
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        watching = asyncio.create_task(self._watch(scope, receive))
        going = asyncio.create_task(self._gate.wait())
        await asyncio.wait((watching, going), return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        going.cancel()
        await send({"type": "http.response.body", "body": b"data: {}\n\n"})

    async def on_silent(self, _scope: Scope, _receive: Any, send: Any) -> None:
        """A stream without an event."""
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        await send({"type": "http.response.body", "body": b""})

    async def on_broken(self, scope: Scope, _receive: Any, send: Any) -> None:
        """As vLLM answers whose engine has died; after /go."""
        self._begun.append(scope["path"])
        await self._gate.wait()
        await whole(send, b'{"error": {"message": "the engine is dead"}}', 500)

    async def on_v1(self, scope: Scope, receive: Any, send: Any) -> None:
        """An adapter is loaded once; its body is remembered."""
        if scope["path"] != "/v1/load_lora_adapter":
            return await self.on_digest(scope, receive, send)
        body = (await receive())["body"].decode()
        again = body in self._begun
        self._begun += [value.decode() for name, value in scope["headers"] if name == b"authorization"]
        self._begun.append(body)
        await whole(send, b"already there" if again else b"done", 400 if again else 200, b"text/plain")

    async def on_hang(self, scope: Scope, receive: Any, send: Any) -> None:
        """Reads the body, never answers."""
        await self._watch(scope, receive)

    async def on_endless(self, scope: Scope, receive: Any, send: Any) -> None:
        """Events for as long as somebody listens."""
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        watching = asyncio.create_task(self._watch(scope, receive))
        while not watching.done():
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            await asyncio.sleep(0.005)

    async def on_die(self, scope: Scope, _receive: Any, send: Any) -> None:
        """Dies: before an answer (`/die`), in an event stream (`/die/sse`), in an announced length (`/die/length`)."""
        kind = scope["path"].removeprefix("/die").strip("/")
        if kind:
            headers = SSE if kind == "sse" else [(b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'data: {"n": 0}\n\n', "more_body": True})
            await self._gate.wait()
        os._exit(1)

    async def _watch(self, scope: Scope, receive: Any) -> None:
        self._begun.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass
        self._aborts.append(scope["path"])


async def whole(send: Any, body: bytes, status: int = 200, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    status = sys.argv[1].encode() if len(sys.argv) > 1 and sys.argv[1] else None
    config = uvicorn.Config(FakeStage(status), log_level="critical", access_log=False, ws="none")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
