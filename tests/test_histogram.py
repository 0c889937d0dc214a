"""Counts of values by size."""

import numpy as np
import pytest

from impala.histogram import Histogram


def counts(histogram: Histogram) -> list[float]:
    return [count for _, count in histogram.cumulative()]


def test_a_value_belongs_to_the_first_bound_that_is_not_below_it() -> None:
    histogram = Histogram((0.0, 1.0, 10.0))
    for value in (0.0, 0.5, 1.0, 1.5, 10.5):
        histogram.add(value)
    assert histogram.cumulative() == [("0.0", 1), ("1.0", 3), ("10.0", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.sum) == (5, 13.5)


@pytest.mark.parametrize("values", [[[0, 1, 2], [2, 3, 300]], [[]], [[-1.0, 0.5, 2.0]]])
def test_an_array_counts_as_its_values_do_one_by_one(values: list[list[float]]) -> None:
    at_once, one_by_one = Histogram((0.0, 1.0, 2.0)), Histogram((0.0, 1.0, 2.0))
    at_once.add(1.0)
    one_by_one.add(1.0)
    at_once.add_many(np.array(values))
    for value in np.array(values).ravel():
        one_by_one.add(value)
    assert (counts(at_once), at_once.sum) == (counts(one_by_one), one_by_one.sum)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0)])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError, match="bounds: expected rising ones"):
        Histogram(bounds)
