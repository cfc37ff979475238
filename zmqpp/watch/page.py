"""The page `/pipeline`: one static file, with the headers that keep it to itself."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

__all__ = ["PAGE_HEADERS", "page"]


@cache
def page() -> bytes:
    """The page, UTF-8. It finds `pipeline/status` and `v1/completions` beside its own address."""
    return resources.files("zmqpp.watch").joinpath("page.html").read_bytes()


def _hashes(tag: str) -> str:
    """CSP sources of the page's own inline parts: nothing else may run, even if something got in."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in parts)


def _policy() -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes('script')}",
            f"style-src {_hashes('style')}",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
        )
    )


PAGE_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-cache",
    "content-security-policy": _policy(),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Sent with the page by whoever serves it."""
