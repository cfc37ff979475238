"""The client's side of one passed request: its body as it arrives, whether it is still there, what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.types import Message, Receive, Send

from zmqpp.gateway.headers import Headers, first

__all__ = ["Client", "Refusal", "refuse"]


class Client:
    """One request. `read` runs in a task of its own for as long as the request lasts.

    Args:
        keep_bytes: so much of its body is kept, for a second replica; 0 = nothing is, and `body` works once.
    """

    def __init__(self, receive: Receive, keep_bytes: int = 0) -> None:
        self._receive = receive
        self._keep_bytes = keep_bytes
        self._kept: list[bytes] | None = [] if keep_bytes else None
        self._more = True
        # One piece: what stage 0 does not take in, the client does not get rid of.
        self._arrived: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        self._wanted = True

    async def read(self) -> None:
        """Take in the body; returns when the client is gone, or has its whole answer."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            if self._wanted:
                await self._arrived.put(message)

    async def body(self) -> AsyncIterator[bytes]:
        """Its pieces, until the last one; asked again, from the first one on."""
        for piece in self._kept or ():
            yield piece
        while self._more:
            message = await self._arrived.get()
            self._more = message.get("more_body", False)
            if piece := message.get("body", b""):
                self._keep(piece)
                yield piece

    def _keep(self, piece: bytes) -> None:
        if self._kept is not None:
            self._kept.append(piece)
            if sum(map(len, self._kept)) > self._keep_bytes:
                self._kept = None

    @property
    def can_be_sent_again(self) -> bool:
        """Whether the whole body is still there for someone else."""
        return self._kept is not None

    def drop_body(self) -> None:
        """Stage 0 has answered: what still comes is nobody's, and `read` must not wait for a taker."""
        self._wanted, self._kept = False, None
        while not self._arrived.empty():
            self._arrived.get_nowait()


class Refusal(Exception):
    """An answer of the gateway's own, in the form of the OpenAI API's errors."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def encoded(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "code": self.status}
        return json.dumps({"error": error}).encode()


async def refuse(send: Send, refusal: Refusal, headers: Headers | None = None) -> None:
    """Send it as a whole response. 502 and 503 say when to try again."""
    body = refusal.encoded()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    fields += headers or []
    if refusal.status in (502, 503) and not first(fields, b"retry-after"):
        fields.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
