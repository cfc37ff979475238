"""The little of the OpenAI API that the launcher needs: is it up, and stream one completion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from zmqpp.errors import ConfigError, RemoteError

__all__ = ["Completion", "fetch", "is_healthy", "pipeline_url", "stream_completion"]


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


def pipeline_url(text: str) -> str:
    """What a person may give for a pipeline, `HOST:PORT` or a URL with or without a path, as `http://HOST:PORT`.

    Raises:
        ConfigError: none of these.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{text!r} is no address of a pipeline: give HOST:PORT or http://HOST:PORT")
    path = parts.path.partition("/pipeline")[0].rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def fetch(url: str, *, timeout_s: float) -> bytes:
    """GET `url`; the body of a 200.

    Raises:
        ConfigError: nobody listens there, or it has no such page. RemoteError: it failed, or did not answer in time.
    """
    import httpx

    try:
        response = httpx.get(url, timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=False)
    except httpx.ConnectError as error:
        raise ConfigError(
            f"{url}: nobody answers there ({error}): is the pipeline running, is this its address?"
        ) from None
    except httpx.TimeoutException:
        raise RemoteError(f"{url}: no answer within {timeout_s:g} s") from None
    except httpx.HTTPError as error:
        raise RemoteError(f"{url}: {error or type(error).__name__}") from None
    if response.status_code == 404:
        raise ConfigError(f"{url}: not found there: is this a zmqpp pipeline, not an ordinary server?")
    if response.status_code != 200:
        raise _refusal(response.status_code, response.text)
    return response.content


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
