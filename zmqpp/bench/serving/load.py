"""What is asked, and when does each token come? Completions in streams, so many at a time, each arrival kept."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from zmqpp.bench.serving.model import VOCABULARY
from zmqpp.bench.serving.servers import NAME
from zmqpp.errors import RemoteError

__all__ = ["Answer", "ask", "prompts"]

_ANSWER_S = 600.0
_FIRST_WORD = 3
"""Below it are the special tokens."""


@dataclass
class Answer:
    """One request's: monotonic seconds of asking and of each piece, and the text."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0

    @property
    def first_s(self) -> float:
        return self.arrivals[0] - self.asked

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; the same for every server."""
    chance = random.Random(seed)
    return [[chance.randrange(_FIRST_WORD, VOCABULARY) for _ in range(length)] for _ in range(count)]


def ask(url: str, asked: Sequence[list[int]], tokens: int, at_once: int) -> list[Answer]:
    """Greedy answers of `tokens` tokens each, `at_once` requests in flight.

    Raises:
        RemoteError: one was not answered, or not to its end.
    """
    return asyncio.run(_ask_all(url, asked, tokens, at_once))


async def _ask_all(url: str, asked: Sequence[list[int]], tokens: int, at_once: int) -> list[Answer]:
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_S, limits=limits, trust_env=False) as client:

        async def one(prompt: list[int]) -> Answer:
            async with gate:
                return await _ask_one(client, prompt, tokens)

        try:
            return await asyncio.gather(*(one(prompt) for prompt in asked))
        except httpx.HTTPError as error:
            raise RemoteError(f"{url}: {error or type(error).__name__}") from error


async def _ask_one(client: httpx.AsyncClient, prompt: list[int], tokens: int) -> Answer:
    body = {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer(asked=time.monotonic())
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RemoteError(f"HTTP {response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                _take(answer, json.loads(line[len("data: ") :]))
    if answer.tokens != tokens or not answer.arrivals:
        raise RemoteError(f"an answer ended after {answer.tokens} of {tokens} tokens")
    return answer


def _take(answer: Answer, piece: dict[str, object]) -> None:
    choices, usage = piece.get("choices"), piece.get("usage")
    if isinstance(choices, list) and choices:
        answer.arrivals.append(time.monotonic())
        answer.pieces.append(str(choices[0]["text"]))
    if isinstance(usage, dict):
        answer.tokens = int(usage["completion_tokens"])
    elif "error" in piece:
        raise RemoteError(f"the stream ended with {piece['error']}")
