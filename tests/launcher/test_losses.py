"""One count of losses, of what the engine misses and of processes that end."""

from __future__ import annotations

import pytest

from zmqpp.pipeline.losses import Losses

ENDED, MISSED, ASKED, READY = "ended", "missed", "ask_for", "settle"
STORIES: dict[str, tuple[list[tuple[str, int]], tuple[int, int]]] = {
    "a kill that both see": ([(MISSED, 1), (ENDED, 1), (READY, 0)], (1, 1)),
    "the launcher first": ([(ENDED, 1), (MISSED, 1), (READY, 0)], (1, 1)),
    "a stage that hangs": ([(MISSED, 2), (READY, 0)], (1, 1)),
    "stage 0": ([(ENDED, 0), (READY, 0)], (1, 1)),
    "stage 0, then a stage that hangs": ([(ENDED, 0), (READY, 0), (MISSED, 1), (READY, 0)], (2, 2)),
    "killed again while it loads": ([(MISSED, 1), (ENDED, 1), (ENDED, 1), (READY, 0)], (2, 1)),
    "two at once": ([(MISSED, 1), (ENDED, 1), (ENDED, 2), (READY, 0)], (2, 1)),
    "as asked for": ([(ASKED, 1), (MISSED, 1), (READY, 0)], (0, 0)),
    "as asked for, and gone back": ([(ASKED, 1), (MISSED, 1), (ASKED, 1), (READY, 0)], (0, 0)),
    "asked for, and another dies": ([(ASKED, 1), (MISSED, 1), (ENDED, 2), (READY, 0)], (1, 1)),
    "asked for, and killed later": (
        [(ASKED, 1), (MISSED, 1), (READY, 0), (MISSED, 1), (ENDED, 1), (READY, 0)],
        (1, 1),
    ),
    "not back yet": ([(MISSED, 1), (ENDED, 1)], (1, 0)),
    "nothing": ([(READY, 0), (READY, 0)], (0, 0)),
}
"""What happened, and how many stages were lost, how often all came back."""


@pytest.mark.parametrize("story", STORIES)
def test_losses_are_counted_once_whoever_tells_them(story: str) -> None:
    told, counted = STORIES[story]
    losses = Losses()
    for what, index in told:
        losses.settle() if what == READY else getattr(losses, what)(index)
    assert (losses.stages, losses.recoveries) == counted


def test_it_is_told_whether_there_was_something_to_recover_from() -> None:
    losses = Losses()
    assert not losses.settle()
    losses.missed(1)
    assert losses.settle() and not losses.settle()
