"""Several curves as one: their mean and an interval for it, where all of them have something to say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Points of a curve that is drawn: more than a picture can show.
POINTS = 400

# The normal distribution's 97.5% quantile, and Student's by degrees of freedom from 1 where no series is close enough.
_Z = 1.959964
_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What was measured at which places.

    Attributes:
        x: [N], ascending.
        y: [N].
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean over curves.

    Attributes:
        x, mean: [N].
        half_width: [N], of the 95% confidence interval of the mean.
    """

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray


def curve(x: np.ndarray, y: np.ndarray) -> Curve:
    """Returns what was measured by place, of several at one place the last, and at most `POINTS` of it.

    Args:
        x, y: [N], in the order of measuring.
    """
    # Of equal ones `unique` takes the first: turned around, that is the last.
    places, last = np.unique(x[::-1], return_index=True)
    values = y[::-1][last]
    if places.size <= POINTS:
        return Curve(x=places, y=values)
    grid = np.linspace(places[0], places[-1], POINTS)
    return Curve(x=grid, y=np.interp(grid, places, values))


def band(curves: Sequence[Curve]) -> Band | None:
    """Returns the mean of two curves or more, with Student's 95% interval, from the latest beginning to the earliest end.

    Outside, some curves say nothing; a mean over those that are left would jump where one of them ends, and tell of none but those
    that took longest. Within, a curve is a straight line between its points. The interval is mean +- t s / sqrt(n), with s the
    standard deviation over the n curves and t Student's 97.5% quantile for n - 1 degrees of freedom: exact where values are
    normally distributed over seeds, and wide where seeds are few.

    Returns:
        None where no place is common to all.
    """
    begin, end = max(each.x[0] for each in curves), min(each.x[-1] for each in curves)
    if begin > end:
        return None
    grid = np.linspace(begin, end, POINTS)
    values = np.stack([np.interp(grid, each.x, each.y) for each in curves])
    error = values.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Band(x=grid, mean=values.mean(axis=0), half_width=student_quantile(len(curves) - 1) * error)


def student_quantile(degrees: int) -> float:
    """Returns the 97.5% quantile of Student's distribution.

    Beyond 10 degrees of freedom by the Cornish-Fisher series in 1 / degrees (Abramowitz and Stegun, 26.7.5), to four digits.
    """
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, n = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
