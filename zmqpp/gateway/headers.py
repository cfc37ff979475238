"""Which headers travel through the gateway, and which belong to one connection only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.types import Scope

__all__ = ["Headers", "first", "of_request", "of_response"]

Headers = list[tuple[bytes, bytes]]

# Source: RFC 9110, 7.6.1, and the older names of RFC 2616, 13.5.1.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_FORWARDED_FOR, _FORWARDED_PROTO, _FORWARDED_HOST = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
)


def of_request(scope: Scope) -> Headers:
    """The client's headers as stage 0 gets them: duplicates and order kept, Host the client's own.

    `Expect` is left out: the gateway's server has answered it by the time a body arrives.
    """
    given: Headers = list(scope["headers"])
    passed = [(name, value) for name, value in _end_to_end(given) if name not in (b"expect", _FORWARDED_FOR)]
    if first(given, b"transfer-encoding"):
        # Its length is not known, whatever a Content-Length beside it says (RFC 9112, 6.3).
        passed = [pair for pair in passed if pair[0] != b"content-length"]
        passed.append((b"transfer-encoding", b"chunked"))
    if not first(given, b"host"):
        passed.append((b"host", b"localhost"))  # HTTP/1.0 knows none, HTTP/1.1 must have one.
    return passed + list(_forwarded(scope, given))


def of_response(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Stage 0's headers as the client gets them."""
    return list(_end_to_end([(name.lower(), value) for name, value in raw]))


def first(headers: Headers, name: bytes) -> bytes:
    """Its first value, in lower case; empty where it is not given."""
    return next((value.lower() for key, value in headers if key == name), b"")


def _end_to_end(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    for name, value in headers:
        if name not in _HOP_BY_HOP and name not in named:
            yield name, value


def _forwarded(scope: Scope, given: Headers) -> Iterator[tuple[bytes, bytes]]:
    route = [value for name, value in given if name == _FORWARDED_FOR]
    if scope.get("client"):
        route.append(str(scope["client"][0]).encode())
    if route:
        yield _FORWARDED_FOR, b", ".join(route)
    if not first(given, _FORWARDED_PROTO):
        yield _FORWARDED_PROTO, str(scope.get("scheme", "http")).encode()
    host = next((value for name, value in given if name == b"host"), b"")
    if host and not first(given, _FORWARDED_HOST):
        yield _FORWARDED_HOST, host
