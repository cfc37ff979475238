"""Requests that change what vLLM holds: with several replicas they go to all, which then still are alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import httpx
from starlette.types import Scope

from zmqpp.gateway.adapters import has_been_done
from zmqpp.gateway.client import Client, Refusal
from zmqpp.gateway.exchange import KINDS, Exchange
from zmqpp.gateway.headers import Headers
from zmqpp.gateway.replica import Replica

__all__ = ["changes_state", "pass_to_all"]

_MOST_BYTES = 16 << 20
_SHOWN = 300
PATHS = frozenset(
    (
        "/abort_requests",
        "/collective_rpc",
        "/finish_weight_update",
        "/init_weight_transfer_engine",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
    )
)
"""Source: the routers below vllm/entrypoints, those that answer POST and generate nothing."""


def changes_state(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] in PATHS


async def pass_to_all(
    replicas: Sequence[Replica], exchange: Exchange, client: Client, on_done: Callable[[bytes], None]
) -> None:
    """Ask all at once, and answer as they do; where they differ, with the error and who has it.

    Args:
        on_done: called with the request's body when all did it, some maybe at an earlier try.

    Raises:
        Refusal: one of them takes no requests now, and none was asked; or the body is too large.
    """
    for replica in replicas:
        if reason := replica.reason_against():
            text = f"no replica was changed, as replica {replica.number} would not be: {reason}"
            raise Refusal(503, KINDS[503], text)
    body = await _whole(client)
    answers = await asyncio.gather(*(_ask(replica, body, exchange) for replica in replicas))
    path = exchange.path
    if all(has_been_done(path, answer.status, answer.body.decode(errors="replace")) for answer in answers):
        on_done(body)
    failed = [number for number, answer in enumerate(answers) if answer.status >= 400]
    if failed and len({answer.status for answer in answers}) > 1:
        first = answers[failed[0]]
        done = [str(number) for number in range(len(answers)) if number not in failed]
        others = f"replicas that did it: {', '.join(done)}" if done else "no replica did it"
        text = first.body[:_SHOWN].decode(errors="replace")
        return await exchange.fail(
            first.status, f"replica {failed[0]} answers {first.status}: {text}; {others}"
        )
    await exchange.pass_whole(answers[0].status, answers[0].headers, answers[0].body)


@dataclass(frozen=True)
class _Whole:
    status: int
    headers: Headers
    body: bytes


async def _ask(replica: Replica, body: bytes, exchange: Exchange) -> _Whole:
    """Its whole answer; one of ours where there is none."""
    try:
        await replica.entrance.enter()
    except Refusal as refusal:  # It was let in when the others were asked.
        return _Whole(refusal.status, [], str(refusal).encode())
    try:
        answer = await exchange.begin(replica.upstream, _once(body))
        try:
            return _Whole(answer.status, answer.headers, await answer.read())
        finally:
            await answer.close()
    except httpx.TransportError as error:
        return _Whole(502, [], f"stage 0 went away: {error or type(error).__name__}".encode())
    finally:
        replica.entrance.leave()


async def _whole(client: Client) -> bytes:
    pieces, size = [], 0
    async for piece in client.body():
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise Refusal(
                413, KINDS[413], f"a request to all replicas may have {_MOST_BYTES >> 20} MiB at most"
            )
    return b"".join(pieces)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
