"""The mean over curves and its interval, held against what they are by definition."""

import math

import numpy as np
import pytest

from run_directory.bands import POINTS, Curve, band, curve, student_quantile


def points(*pairs: tuple[float, float]) -> Curve:
    x, y = np.array(pairs, dtype=np.float64).T
    return curve(x, y)


def test_of_several_measurements_at_one_place_the_last_counts() -> None:
    drawn = points((0, 1), (2, 3), (2, 4), (5, 6))
    assert (drawn.x.tolist(), drawn.y.tolist()) == ([0, 2, 5], [1, 4, 6])


def test_a_long_curve_is_thinned_from_its_first_point_to_its_last() -> None:
    x = np.arange(10_000, dtype=np.float64)
    drawn = curve(x, 2 * x)
    assert (drawn.x.size, drawn.x[0], drawn.x[-1]) == (POINTS, 0, 9999)
    np.testing.assert_allclose(drawn.y, 2 * drawn.x)


def test_a_mean_goes_from_the_latest_beginning_to_the_earliest_end() -> None:
    mean = band([points((0, 0), (10, 10)), points((2, 4), (20, 40))])
    assert mean is not None
    assert (mean.x[0], mean.x[-1]) == (2, 10)


def test_between_its_points_a_curve_is_a_straight_line() -> None:
    mean = band([points((0, 0), (10, 10)), points((0, 0), (3, 6), (10, 20))])
    assert mean is not None
    np.testing.assert_allclose(mean.mean, 1.5 * mean.x)


def test_curves_without_a_place_in_common_have_no_mean() -> None:
    assert band([points((0, 0), (1, 1)), points((2, 2), (3, 3))]) is None


def test_the_interval_is_students() -> None:
    # Three values 1, 2, 6: mean 3, standard deviation sqrt(7), and 4.302653 of a mean's errors sqrt(7 / 3) on each side.
    mean = band([points((0, value), (1, value)) for value in (1, 2, 6)])
    assert mean is not None
    np.testing.assert_allclose(mean.mean, 3.0)
    np.testing.assert_allclose(mean.half_width, 4.302653 * math.sqrt(7 / 3))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 50, 1000])
def test_a_fortieth_of_students_distribution_lies_beyond_the_quantile(degrees: int) -> None:
    # The density from 0 to the quantile, by Simpson's rule.
    x = np.linspace(0.0, student_quantile(degrees), 20_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    weights = np.ones_like(x)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    inside = float((weights * density).sum() * (x[1] - x[0]) / 3)
    assert inside == pytest.approx(0.475, abs=5e-6)
