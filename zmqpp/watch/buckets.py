"""Counting durations and sizes in fixed classes, as Prometheus histograms want them."""

from __future__ import annotations

from bisect import bisect_left

from zmqpp.watch.status import Histogram

__all__ = ["REQUESTS", "SECONDS", "Buckets"]

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""From a message's hop to a long prefill."""
REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Buckets:
    """One histogram being filled; one addition an entry. Thread: one writer."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        return Histogram(list(self._bounds), list(self._counts), self._sum)
