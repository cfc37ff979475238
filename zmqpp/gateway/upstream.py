"""Stage 0's HTTP server as the gateway reaches it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx

from zmqpp.errors import ConfigError
from zmqpp.gateway.headers import Headers

__all__ = ["Upstream"]

_CONNECT_S = 5.0
# No limit on reading: a generation may think for minutes. A host that vanished is noticed by TCP itself.
_TIMEOUT = {"connect": _CONNECT_S, "read": None, "write": None, "pool": None}
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Upstream:
    """Requests to `url` (`http://HOST:PORT`), one connection each.

    A connection that is kept may be closed by stage 0 in the moment we send on it, and then nobody knows whether
    the generation has begun; a fresh one costs a tenth of a millisecond.
    Thread: one event loop. Owns its connections; `close` ends them.
    """

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        if self._url.scheme != "http" or not self._url.host:
            raise ConfigError(f"{url!r} is no address of stage 0: give http://HOST:PORT")
        self._transport = httpx.AsyncHTTPTransport(
            verify=False,  # no TLS here; loading certificates would be for nothing
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            socket_options=_KEEPALIVE,
        )

    @property
    def address(self) -> str:
        return str(self._url)

    async def send(
        self, method: str, target: bytes, headers: Headers, body: AsyncIterator[bytes] | None = None
    ) -> httpx.Response:
        """Send a request whose `target` goes onto the wire as it is; returns when the headers of the answer are there.

        Raises:
            httpx.TransportError: stage 0 cannot be reached, or closed without an answer.
        The caller closes the response (`aclose`), which aborts what is unfinished.
        """
        request = httpx.Request(
            method,
            self._url,
            headers=headers,
            stream=_Body(body),
            extensions={"target": target, "timeout": _TIMEOUT},
        )
        return await self._transport.handle_async_request(request)

    async def get(self, path: str, timeout_s: float, headers: Headers | None = None) -> httpx.Response | None:
        """A whole small answer; None when there was none within `timeout_s`."""
        fields = [(b"host", self._url.netloc), *(headers or [])]
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.send("GET", path.encode(), fields)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.HTTPError):
            return None
        return response

    async def close(self) -> None:
        await self._transport.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes] | None) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._pieces is not None:
            async for piece in self._pieces:
                yield piece
