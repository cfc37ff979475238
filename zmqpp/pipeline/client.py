"""The little of the OpenAI API that the launcher needs: is it up, and stream one completion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from zmqpp.errors import ConfigError, RemoteError

__all__ = ["Completion", "is_healthy", "stream_completion"]


@dataclass(frozen=True)
class Completion:
    """What to ask for; greedy, so that the same prompt gives the same text."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0


def is_healthy(url: str) -> bool:
    """True when GET `url`/health answers 200 within a second."""
    import httpx

    try:
        # trust_env=False: a proxy configured for the internet has no business with a local port.
        return httpx.get(f"{url}/health", timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def stream_completion(url: str, completion: Completion, *, timeout_s: float) -> Iterator[str]:
    """Yield the completion's text piece by piece, as the server sends it.

    Args:
        timeout_s: the longest silence allowed between two pieces.
    Raises:
        ConfigError: the server refused the request (4xx), with its own words.
        RemoteError: the server failed or went away.
    """
    import httpx

    body = {**completion.__dict__, "stream": True}
    try:
        with (
            httpx.Client(timeout=timeout_s, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _refusal(response.status_code, response.text)
            yield from _pieces(response.iter_lines())
    except httpx.HTTPError as error:
        raise RemoteError(f"{url}/v1/completions: {error or type(error).__name__}") from error


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Server-sent events: one JSON object per `data:` line, `[DONE]` at the end."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            return
        event = json.loads(text)
        if "error" in event:
            raise RemoteError(f"the server stopped the completion: {_message(event)}")
        for choice in event.get("choices", []):
            if choice.get("text"):
                yield choice["text"]


def _refusal(status: int, text: str) -> ConfigError | RemoteError:
    try:
        text = _message(json.loads(text))
    except ValueError:
        pass
    kind = ConfigError if 400 <= status < 500 else RemoteError
    return kind(f"the server answered {status}: {text[:300]}")


def _message(event: object) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
