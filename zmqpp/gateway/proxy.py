"""Passing requests through to a stage 0, piece by piece both ways, for exactly as long as the client stays.

    client ── receive() ──> Client.read ──(one piece)──> Upstream.send ──> stage 0
    client <── send() ───── Exchange.answer <──(one chunk)── response ──── stage 0

Whichever side ends first ends the other: a client that hangs up closes the connection to stage 0, so that vLLM
aborts the generation; a stage 0 that dies leaves the client an error, not a silent truncation. Where there are
several replicas, one that is lost before it has begun to answer loses the request to another one.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from zmqpp.gateway.choice import Choice
from zmqpp.gateway.client import Client, Refusal, refuse
from zmqpp.gateway.exchange import Answer, Exchange
from zmqpp.gateway.headers import first
from zmqpp.gateway.replica import READY, Replica
from zmqpp.gateway.to_all import changes_state, pass_to_all

__all__ = ["Proxy"]

_NOTICE_S = 0.5
"""How long the launcher gets to find out which stage died before a client is told that one did."""
_LOOKS = 10
_KEPT_BYTES = 16 << 20
"""Of a request's body, so that it can be sent to another replica."""


class Proxy:
    """An ASGI application."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if first(scope["headers"], b"upgrade") == b"websocket":
            refusal = Refusal(
                501,
                "NotImplementedError",
                "this address passes no WebSockets on; connect to stage 0's own port",
            )
            return await refuse(send, refusal, [(b"connection", b"close")])
        client = Client(receive, _KEPT_BYTES if self._choice.are_several else 0)
        passing = _Passing(self._choice, Exchange(scope, send), client)
        try:
            if reason := passing.replica.reason_against():
                return await refuse(send, passing.replica.refusal(reason))
            await passing.run(scope)
        finally:
            self._choice.leave(passing.replica)


class _Left(Exception):
    """This replica does not serve the request, and another one may."""


class _Passing:
    """One request, from the first replica that it goes to until its answer. The caller leaves the last one."""

    def __init__(self, choice: Choice, exchange: Exchange, client: Client) -> None:
        self.replica = choice.take()
        self._choice, self._exchange, self._client = choice, exchange, client
        self._tried: list[Replica] = []

    async def run(self, scope: Scope) -> None:
        exchange = self._exchange
        to_all = self._choice.are_several and changes_state(scope)
        serving = self._serve_by_all(scope) if to_all else self._serve()
        reading, passing = asyncio.create_task(self._client.read()), asyncio.create_task(serving)
        try:
            await asyncio.wait((reading, passing), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The server is being stopped. Not raised again: it has nobody to tell but the log.
            await _ended(passing)
            return await exchange.fail(503, self.replica.obstacle() or "the pipeline is being stopped")
        finally:
            if reading.done() and not passing.done():
                exchange.client_gone = True
            await _ended(reading)
            failure = await _ended(passing)
        await self._tell(failure)

    async def _tell(self, failure: BaseException | None) -> None:
        exchange = self._exchange
        if isinstance(failure, _Left) and not exchange.client_gone:
            # While it was leaving, there was nobody left to go to.
            await exchange.fail(503, self.replica.obstacle() or "no replica takes requests now")
        elif isinstance(failure, Refusal) and not exchange.client_gone:
            await exchange.fail(failure.status, str(failure))
        elif isinstance(failure, httpx.LocalProtocolError) and not exchange.client_gone:
            await exchange.fail(400, f"this request cannot be passed on: {failure}")
        elif isinstance(failure, httpx.TransportError) and not exchange.client_gone:
            unreached = isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout))
            await exchange.fail(503 if unreached else 502, await self._explain(failure))
        elif failure is not None and not isinstance(failure, asyncio.CancelledError | Refusal | _Left):
            raise failure

    async def _serve(self) -> None:
        """Raises Refusal when it is not let in, httpx.TransportError when stage 0 fails."""
        while True:
            try:
                return await self._admitted(self.replica)
            except httpx.LocalProtocolError:
                raise
            except (Refusal, httpx.TransportError, _Left):
                self._tried.append(self.replica)
                if not self._may_go_elsewhere(self._tried):
                    raise
                self._choice.leave(self.replica)
                self.replica = self._choice.take(self._tried)

    async def _serve_by_all(self, scope: Scope) -> None:
        note = partial(self._choice.adapters.note, scope["path"], scope["headers"])
        await pass_to_all(self._choice.replicas, self._exchange, self._client, note)

    async def _admitted(self, replica: Replica) -> None:
        await replica.entrance.enter()
        try:
            if reason := replica.obstacle():  # It may have waited.
                raise replica.refusal(reason)
            answer = await self._begin(replica)
            self._client.drop_body()
            await self._exchange.pass_on(answer)
        finally:
            replica.entrance.leave()

    async def _begin(self, replica: Replica) -> Answer:
        """The answer's headers are there; with several replicas the first of its body too, if it has one.

        Raises:
            _Left: another replica will answer sooner.
        """
        if not self._choice.are_several:
            return await self._exchange.begin(replica.upstream, self._client.body())
        beginning = asyncio.create_task(self._begin_body(replica))
        leaving = asyncio.create_task(self._choice.until_elsewhere_is_better(replica, self._tried))
        try:
            await asyncio.wait((beginning, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not beginning.done() and self._client.can_be_sent_again:
                raise _Left
            return await beginning
        except BaseException:
            if await _ended(beginning) is None:
                await beginning.result().close()
            raise
        finally:
            await _ended(leaving)

    async def _begin_body(self, replica: Replica) -> Answer:
        answer = await self._exchange.begin(replica.upstream, self._client.body())
        try:
            await answer.await_body()
            if answer.is_of_a_failure and await self._is_lost(replica):
                raise _Left
        except BaseException:
            await answer.close()
            raise
        return answer

    async def _is_lost(self, replica: Replica) -> bool:
        """Whether an error is one of its end, and another replica may know better."""
        for _ in range(_LOOKS):
            if not self._may_go_elsewhere([*self._tried, replica]):
                return False
            if replica.rank() != READY:
                return replica.source.lost_from_outside
            await asyncio.sleep(_NOTICE_S / _LOOKS)
        return False

    def _may_go_elsewhere(self, tried: list[Replica]) -> bool:
        begun = self._exchange.has_begun or not self._client.can_be_sent_again
        return not begun and self._choice.has_another(tried)

    async def _explain(self, failure: httpx.TransportError) -> str:
        for _ in range(_LOOKS):
            if reason := self.replica.obstacle():
                return reason
            await asyncio.sleep(_NOTICE_S / _LOOKS)
        what = str(failure) or type(failure).__name__
        return f"stage 0 at {self.replica.upstream.address} went away: {what}"


async def _ended(task: asyncio.Task[Any]) -> BaseException | None:
    """Cancel it unless it is done, wait for its end, and return what it raised."""
    task.cancel()
    await asyncio.wait((task,))
    return asyncio.CancelledError() if task.cancelled() else task.exception()
