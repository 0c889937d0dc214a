"""Counts of values by size: what may be asked for at any moment, and costs next to nothing to keep."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


class Histogram:
    """How many values lay between which bounds, and their sum. It only ever grows.

    One thread adds and any thread may read: what is being added meanwhile may be counted and not yet be in the sum.

    Args:
        bounds: rising; a value belongs to the first bound that is not below it, and what is above them all to infinity.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), f"bounds: expected rising ones, came {bounds}"
        self._bounds = [float(bound) for bound in bounds]
        self._edges = np.asarray(self._bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value, which is a number."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def add_many(self, values: np.ndarray) -> None:
        """Counts the numbers of an array of any shape."""
        places = np.searchsorted(self._edges, values.ravel())
        found = np.bincount(places, minlength=len(self._counts)).tolist()
        # All at once, so that nobody reads one half of a batch.
        self._counts = [count + more for count, more in zip(self._counts, found, strict=True)]
        self.sum += float(values.sum())

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self._counts)

    @property
    def bounds(self) -> list[float]:
        """What it was made with."""
        return list(self._bounds)

    def counts(self) -> list[int]:
        """Returns how many values lay at or below each bound and above the one before, and last how many above them all."""
        return self._counts.copy()

    def cumulative(self) -> list[tuple[str, float]]:
        """Returns, for each bound and "+Inf", how many values are no greater: the buckets that Prometheus knows."""
        counts, total, buckets = self.counts(), 0, list[tuple[str, float]]()
        for bound, count in zip([*map(repr, self._bounds), "+Inf"], counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets
