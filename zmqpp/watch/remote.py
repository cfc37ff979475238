"""Asking a running pipeline for its status or a trace, at an address as a person writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import msgspec

from zmqpp.errors import ConfigError
from zmqpp.extras import require
from zmqpp.watch.status import PipelineStatus

if TYPE_CHECKING:
    import httpx

__all__ = ["base_url", "fetch", "fetch_status"]

_PATH = "/pipeline/status"


def base_url(address: str) -> str:
    """`PORT` here, `HOST:PORT`, a URL, or that of the page or the status itself -> the URL before `/pipeline`.

    Raises:
        ConfigError: it is none of these.
    """
    place = f"127.0.0.1:{address}" if address.isascii() and address.isdigit() else address
    text = place if "://" in place else f"http://{place}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"{address!r} is no address: {error}; give HOST:PORT or http://HOST:PORT"
        ) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{address!r} is no address of a pipeline: give HOST:PORT or http://HOST:PORT")
    path = parts.path.rstrip("/").removesuffix("/status").removesuffix("/pipeline")
    return urlunsplit((parts.scheme, parts.netloc, path.rstrip("/"), "", ""))


def fetch_status(url: str, timeout_s: float = 5.0) -> tuple[PipelineStatus, bytes]:
    """The status, and the JSON it came as.

    Args:
        url: what `base_url` gave.
        timeout_s: the longest wait for an answer.
    Raises:
        ConfigError: as `fetch`, or it is no status.
    """
    body = fetch(url, _PATH, timeout_s)
    try:
        return msgspec.json.decode(body, type=PipelineStatus), body
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{url}{_PATH} is not the status of a zmqpp pipeline: {error}") from error


def fetch(url: str, path: str, timeout_s: float) -> bytes:
    """What GET `url``path` answers.

    Raises:
        ConfigError: nothing answers there, or not a pipeline; one line that says which.
    """
    require("httpx")
    import httpx

    try:
        # trust_env=False: a proxy configured for the internet has no business with a pipeline's address.
        response = httpx.get(
            url + path, timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)), trust_env=False
        )
    except httpx.TimeoutException as error:
        raise ConfigError(f"{url} did not answer within {timeout_s:g} s") from error
    except httpx.ConnectError as error:
        raise ConfigError(_unreachable(url, str(error))) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url} gave no answer: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise ConfigError(_refused(url, path, response))
    return response.content


def _unreachable(url: str, text: str) -> str:
    if "ssl" in text.lower():
        return f"{url} does not speak https: try http://"
    if any(word in text for word in ("Name or service", "No address", "Temporary failure", "nodename")):
        return f"{url}: no such host"
    if "refused" in text or "attempts failed" in text:
        return (
            f"nobody listens on {url}: start `zmqpp serve` there, or give the address of a running pipeline"
        )
    return f"{url} cannot be reached: {text}"


def _refused(url: str, path: str, response: httpx.Response) -> str:
    if response.status_code == 404:
        return f"{url} answers, but knows no {path.partition('?')[0]}: a plain vLLM, or another server?"
    try:
        return f"{url}: {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{url} answers {response.status_code} to {path}"
