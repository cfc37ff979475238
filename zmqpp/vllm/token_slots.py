"""Which rows of a V2 model runner the tokens of earlier steps belong to, on a stage that does not sample.

Each step that draws tokens leaves a slot: its requests' rows, and how often each row had been given up by then. Its
tokens come later, with another step. Rows that were given up meanwhile may be another request's: they get none.

Thread: the stage's main thread. Source: PPHandler.receive, get_prev_sampled_outputs (vllm/v1/worker/gpu/pp_utils.py),
which counts steps by its pipeline's size; here they go by number, since steps without tokens are not sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from zmqpp import control
from zmqpp._shown import shown
from zmqpp.errors import MalformedError

__all__ = ["GIVEN_UP", "Drawn", "TokenSlots"]

GIVEN_UP = -1
"""In place of a row: nobody's any more. vLLM's kernels skip it."""


@dataclass(frozen=True)
class Drawn:
    """Tokens for n rows of the runner's request state."""

    rows: NDArray[np.int64]
    """-1 where nobody needs the token any more."""
    tokens: NDArray[np.int64]
    """[n, as many as a step may draw of a request]; zeros behind those that were drawn."""
    counts: NDArray[np.int32]
    """How many were drawn: 0 of a prompt that is not complete, more than 1 where drafts were accepted."""
    rejected: NDArray[np.int32]
    """How many drafts were not."""
    drafts: NDArray[np.int64]
    """[n, as many as may be drafted for a request]: the next ones; zeros behind those that were."""


@dataclass(frozen=True)
class _Slot:
    rows: NDArray[np.int64]
    generations: NDArray[np.int32]
    needed: NDArray[np.bool_]
    places: list[int]
    """Of each row's request among the step's, as they were scheduled."""
    drafted: NDArray[np.int32]
    """Of each row's request: drafts that the step computed."""


class TokenSlots:
    """Slots of the steps whose tokens are still to come.

    Args:
        requests: rows of the runner's request state.
        vocabulary: of the model.
        drafts: most tokens that are drafted for a request.
    """

    def __init__(self, requests: int, vocabulary: int, drafts: int = 0) -> None:
        self._vocabulary, self._drafts = vocabulary, drafts
        self._generations: NDArray[np.int32] = np.zeros(requests, dtype=np.int32)
        self._slots: dict[int, _Slot] = {}
        self._came: list[Drawn] = []
        self._step, self._scheduled = 0, dict[str, int]()
        self._computed: Mapping[str, Sequence[int]] = {}

    def begin(
        self,
        step: int,
        scheduled: Sequence[str],
        sampled: Sequence[control.Sampled],
        computed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """`step` runs next, with these requests, and has drafts of theirs `computed`; `sampled` came with it.

        Raises:
            MalformedError: they are not of the steps that they are said to be of.
        """
        self._step, self._scheduled = step, {name: place for place, name in enumerate(scheduled)}
        self._computed = computed or {}
        for earlier in sampled:
            self._take(earlier)

    def _take(self, sampled: control.Sampled) -> None:
        slot = self._slots.pop(sampled.step, None)
        if slot is None:
            return  # Nobody goes on from that step.
        lapsed = (self._generations[slot.rows] != slot.generations) | ~slot.needed
        rows = np.where(lapsed, GIVEN_UP, slot.rows)
        drawn = self._drawn_in(slot, rows, sampled)
        if (rows != GIVEN_UP).any():
            self._came.append(drawn)

    def _drawn_in(self, slot: _Slot, rows: NDArray[np.int64], sampled: control.Sampled) -> Drawn:
        if max(slot.places, default=-1) >= len(sampled.tokens):
            raise _none(sampled)
        tokens, counts = _table([sampled.tokens[place] for place in slot.places], 1 + self._drafts)
        drafts, drafted = _table(self._drafts_in(slot, sampled), self._drafts)
        if tokens.max(initial=-1) >= self._vocabulary or drafts.max(initial=-1) >= self._vocabulary:
            raise _none(sampled)
        if (counts > 1 + np.minimum(slot.drafted, self._drafts)).any() or (drafted > self._drafts).any():
            raise _none(sampled)
        rejected = np.where(counts > 0, 1 + slot.drafted - counts, 0).astype(np.int32)
        return Drawn(rows, tokens, counts, rejected, drafts)

    def _drafts_in(self, slot: _Slot, sampled: control.Sampled) -> list[list[int]]:
        if not sampled.drafts:
            return [[]] * len(slot.places)
        if len(sampled.drafts) != len(sampled.tokens):
            raise _none(sampled)
        return [sampled.drafts[place] for place in slot.places]

    def keep(self, names: Sequence[str], rows: NDArray[np.int64], needed: NDArray[np.bool_]) -> None:
        """The step that runs draws a token for each of `names`, which are at `rows`; some are `needed`."""
        if not self._scheduled:
            return  # vLLM warms up
        places = [self._scheduled[name] for name in names]
        drafted = np.fromiter((len(self._computed.get(name, ())) for name in names), np.int32, len(names))
        rows = np.asarray(rows, dtype=np.int64)
        self._slots[self._step] = _Slot(rows, self._generations[rows], needed, places, drafted)

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
            np.concatenate([each.rejected for each in came]),
            np.concatenate([each.drafts for each in came]),
        )

    def forget(self) -> None:
        """Tokens of the steps until now do not come any more."""
        self._slots.clear()
        self._came.clear()


def _table(lists: Sequence[Sequence[int]], width: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The lists as rows, zeros behind each, cut off at `width`; and how long each of them is."""
    counts = np.fromiter(map(len, lists), np.int32, len(lists))
    table: NDArray[np.int64] = np.zeros((len(lists), width), dtype=np.int64)
    flat = chain.from_iterable(each[:width] for each in lists)
    table[np.arange(width) < counts[:, None]] = np.fromiter(flat, np.int64)
    return table, counts


def _none(sampled: control.Sampled) -> MalformedError:
    return MalformedError(
        f"step {sampled.step} has not drawn the tokens {shown(sampled.tokens)}, "
        f"with drafts {shown(sampled.drafts)}"
    )
