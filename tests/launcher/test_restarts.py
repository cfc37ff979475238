"""How often a stage is started anew, by a clock of the test's own."""

from __future__ import annotations

import pytest

from zmqpp.pipeline import restarts as module
from zmqpp.pipeline.restarts import Restarts


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lose(restarts: Restarts, *, from_outside: bool = True) -> bool:
    """And start it anew, if that may be."""
    may = restarts.lose(from_outside=from_outside)
    if may:
        restarts.start()
    return may


def test_a_row_ends_with_the_pipeline_ready_for_a_while_where_somebody_kills(clock: Clock) -> None:
    restarts = Restarts(3)
    for _ in range(20):
        restarts.ready()
        clock.now += 20
        assert lose(restarts) and restarts.pause_s == 0
    assert restarts.total == 20


def test_whoever_dies_before_it_is_ready_is_tried_so_often_with_growing_pauses(clock: Clock) -> None:
    restarts = Restarts(7)
    pauses = []
    while lose(restarts):
        pauses.append(restarts.pause_s)
        clock.now += 100
    assert pauses == [0, 1, 2, 4, 8, 16, 30]
    assert restarts.given_up == "; given up after 7 restarts in a row"


@pytest.mark.parametrize(("ready_s", "may"), [(1.0, False), (30.0, False), (700.0, True)])
def test_whoever_fails_by_itself_is_forgiven_after_a_long_time_only(
    clock: Clock, ready_s: float, may: bool
) -> None:
    restarts = Restarts(1)
    assert lose(restarts, from_outside=False)
    restarts.ready()
    clock.now += ready_s
    assert lose(restarts, from_outside=False) == may


def test_whoever_is_killed_as_soon_as_it_is_ready_counts(clock: Clock) -> None:
    restarts = Restarts(2)
    for may in (True, True, False):
        restarts.ready()
        clock.now += 1
        assert lose(restarts) == may


def test_kills_without_end_are_one(clock: Clock) -> None:
    restarts = Restarts(1)
    for _ in range(60):
        restarts.ready()
        clock.now += 6
        assert lose(restarts)
    restarts.ready()
    clock.now += 6
    assert not lose(restarts)


def test_none_are_none(clock: Clock) -> None:
    restarts = Restarts(0)
    restarts.ready()
    clock.now += 10_000
    assert not lose(restarts) and restarts.given_up == ""
