"""Queries of late interaction: the last stage keeps their vectors for the documents that come after, and loses them.

With any loss, its own or another one: it then forgets all. Documents whose query is gone get an error; computed, they
would end the stage again and again. Who asks again has both computed anew.

Thread: vLLM's input thread checks, everything else is the engine's. Source: vllm/v1/pool/late_interaction.py.
"""

from __future__ import annotations

from typing import Any

from zmqpp.errors import UnsupportedError

__all__ = ["LateQueries"]

_QUERY, _DOCUMENT = "cache_query", "score_doc"
_MOST = 100_000


class LateQueries:
    """By the key that vLLM's server gave each."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def check(self, request: Any) -> None:
        """Raises UnsupportedError: vLLM's Request is a document whose query was lost."""
        mode, key = _of(request)
        if mode == _QUERY:
            self._known[key] = None
            if len(self._known) > _MOST:
                self._known.pop(next(iter(self._known)))
        elif mode == _DOCUMENT and key not in self._known:
            raise UnsupportedError("the query that this is compared with was lost with a stage: ask again")

    def lose(self, requests: list[Any]) -> list[Any]:
        """After a loss; of `requests`, which are all there are, those that cannot be computed any more."""
        self._known = {key: None for mode, key in map(_of, requests) if mode == _QUERY}
        return [request for request in requests if _of(request)[0] == _DOCUMENT]


def _of(request: Any) -> tuple[str | None, str]:
    late = getattr(request.pooling_params, "late_interaction_params", None)
    return (None, "") if late is None else (late.mode, late.query_key)
