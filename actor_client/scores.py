"""What the returns of an evaluation amount to: statistics, and scores on the human scale of the Atari games."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from actor_client.atari_scores import REFERENCES

RESAMPLES = 10_000


def summarise(environment_id: str, returns: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Returns the statistics of an environment's true returns as JSON values.

    Args:
        returns: one or more.
        seed: of the resampling that the confidence interval rests on.
    """
    mean = statistics.fmean(returns)
    return {
        "episodes": len(returns),
        "mean": mean,
        "median": statistics.median(returns),
        "std": statistics.pstdev(returns),
        "min": min(returns),
        "max": max(returns),
        "ci95": list(confidence_interval(returns, seed=seed)),
        "human_normalised": human_normalised(environment_id, mean),
    }


def confidence_interval(returns: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Returns the 95% bootstrap confidence interval of the mean: the middle 95% of the means of resamples (percentile method).

    Source: Efron 1979; `RESAMPLES` draws with replacement, each of as many returns as there are.
    """
    values, random = np.asarray(returns, dtype=np.float64), np.random.default_rng(seed)
    # A hundred at a time: all at once would take gigabytes for many returns.
    means = [values[random.integers(values.size, size=(100, values.size))].mean(axis=1) for _ in range(RESAMPLES // 100)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def human_normalised(environment_id: str, score: float) -> float | None:
    """Returns a score in per cent of the way from random play, 0, to a human's, 100; None for all but the paper's Atari games."""
    named = re.fullmatch(r"ALE/(\w+)-v\d+", environment_id)
    reference = REFERENCES.get(named[1]) if named else None
    if reference is None:
        return None
    return 100.0 * (score - reference.random) / (reference.human - reference.random)
