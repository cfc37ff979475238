"""Which rows of a V2 model runner the tokens of earlier steps belong to, on a stage that does not sample.

Each step that draws tokens leaves a slot: its requests' rows, and how often each row had been given up by then. Its
tokens come later, with another step. Rows that were given up meanwhile may be another request's: they get none.

Thread: the stage's main thread. Source: PPHandler.receive, get_prev_sampled_outputs (vllm/v1/worker/gpu/pp_utils.py),
which counts steps by its pipeline's size; here they go by number, since steps without tokens are not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError

__all__ = ["Drawn", "TokenSlots"]

GIVEN_UP = -1
"""In place of a row: nobody's any more. vLLM's kernels skip it."""


@dataclass(frozen=True)
class Drawn:
    """Tokens for rows of the runner's request state; all of length n."""

    rows: NDArray[np.int64]
    """-1 where nobody needs the token any more."""
    tokens: NDArray[np.int64]
    counts: NDArray[np.int32]
    """0 where none was drawn, else 1."""


@dataclass(frozen=True)
class _Slot:
    rows: NDArray[np.int64]
    generations: NDArray[np.int32]
    needed: NDArray[np.bool_]
    places: NDArray[np.intp]
    """Of each row's request among the step's, as they were scheduled."""


class TokenSlots:
    """Slots of the steps whose tokens are still to come.

    Args:
        requests: rows of the runner's request state.
        vocabulary: of the model.
    """

    def __init__(self, requests: int, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._generations: NDArray[np.int32] = np.zeros(requests, dtype=np.int32)
        self._slots: dict[int, _Slot] = {}
        self._came: list[Drawn] = []
        self._step, self._scheduled = 0, dict[str, int]()

    def begin(self, step: int, scheduled: Sequence[str], sampled: Sequence[control.Sampled]) -> None:
        """`step` runs next, with these requests; `sampled`: tokens that came with it.

        Raises:
            MalformedError: they are not of the steps that they are said to be of.
        """
        self._step, self._scheduled = step, {name: place for place, name in enumerate(scheduled)}
        for earlier in sampled:
            self._take(earlier)

    def _take(self, sampled: control.Sampled) -> None:
        slot = self._slots.pop(sampled.step, None)
        if slot is None:
            return  # Nobody goes on from that step.
        tokens = np.asarray(sampled.tokens, dtype=np.int64)
        if slot.places.max(initial=-1) >= len(tokens) or tokens.max(initial=-1) >= self._vocabulary:
            raise MalformedError(f"step {sampled.step} has not drawn the tokens {shown(sampled.tokens)}")
        tokens = tokens[slot.places]
        lapsed = (self._generations[slot.rows] != slot.generations) | ~slot.needed
        rows = np.where(lapsed, GIVEN_UP, slot.rows)
        if (rows != GIVEN_UP).any():
            self._came.append(Drawn(rows, tokens, (tokens != control.NO_TOKEN).astype(np.int32)))

    def keep(self, names: Sequence[str], rows: NDArray[np.int64], needed: NDArray[np.bool_]) -> None:
        """The step that runs draws a token for each of `names`, which are at `rows`; some are `needed`."""
        if not self._scheduled:
            return  # vLLM warms up
        places = np.fromiter((self._scheduled[name] for name in names), dtype=np.intp, count=len(names))
        rows = np.asarray(rows, dtype=np.int64)
        self._slots[self._step] = _Slot(rows, self._generations[rows], needed, places)

    def give_up(self, row: int) -> None:
        """The request at `row` has left it."""
        self._generations[row] += 1

    def drawn(self) -> Drawn | None:
        """What came and is needed, once."""
        came, self._came = self._came, []
        if len(came) < 2:
            return came[0] if came else None
        return Drawn(
            np.concatenate([each.rows for each in came]),
            np.concatenate([each.tokens for each in came]),
            np.concatenate([each.counts for each in came]),
        )

    def forget(self) -> None:
        """Tokens of the steps until now do not come any more."""
        self._slots.clear()
        self._came.clear()
