"""Scores of an evaluation: statistics against what is known in closed form, human-normalised ones against the paper's own."""

import statistics

import numpy as np
import pytest

from actor_client.atari_scores import REFERENCES
from actor_client.scores import confidence_interval, human_normalised, summarise

# What the IMPALA paper prints for its deep network after 200 million frames of each game, in alphabetical order.
# fmt: off
PAPER_DEEP = [
    15962.10, 1554.79, 19148.47, 300732.00, 108590.05, 849967.50, 1223.15, 20885.00, 32463.47, 1852.70, 59.92, 99.96, 787.34,
    11049.75, 28255.00, 136950.00, 185203.00, 132826.98, -0.33, 0.00, 44.85, 0.00, 317.75, 66782.30, 359.50, 33730.55, 3.48,
    601.50, 1632.00, 8147.40, 43375.50, 0.00, 7342.32, 21537.20, 210996.45, -1.66, 20.98, 98.50, 351200.12, 29608.05, 57121.00,
    12.96, 1753.20, -10180.38, 2365.00, 43595.78, 200625.00, 7.56, 0.55, 48481.50, 292.11, 332546.75, 0.00, 572898.27, 9157.50,
    84231.14, 32935.50,
]
# fmt: on


def test_a_summary_is_of_all_returns() -> None:
    summary = summarise("CartPole-v1", [1.0, 2.0, 3.0, 10.0], seed=0)
    assert summary == {
        "episodes": 4,
        "mean": 4.0,
        "median": 2.5,
        "std": pytest.approx(12.5**0.5),
        "min": 1.0,
        "max": 10.0,
        "ci95": list(confidence_interval([1.0, 2.0, 3.0, 10.0], seed=0)),
        "human_normalised": None,
    }


@pytest.mark.parametrize(
    ("returns", "interval"),
    [
        ([7.5], (7.5, 7.5)),
        # Means of resamples are binomial / n. Binomial(100, 1/2): P(<= 39) = 0.018, P(<= 40) = 0.028, and the mirror image above.
        ([0.0] * 50 + [1.0] * 50, (0.40, 0.60)),
        # Binomial(10, 1/10): P(0) = 0.35, P(<= 2) = 0.93, P(<= 3) = 0.987; far from a normal distribution's -0.09 .. 0.29.
        ([0.0] * 9 + [1.0], (0.0, 0.3)),
    ],
)
def test_the_confidence_interval_is_the_middle_95_per_cent_of_resampled_means(
    returns: list[float], interval: tuple[float, float]
) -> None:
    assert confidence_interval(returns, seed=0) == pytest.approx(interval)


def test_the_confidence_interval_of_a_seed_is_always_the_same() -> None:
    returns = list(np.random.default_rng(0).normal(size=50))
    assert confidence_interval(returns, seed=3) == confidence_interval(returns, seed=3)
    assert confidence_interval(returns, seed=3) != confidence_interval(returns, seed=4)


@pytest.mark.parametrize(
    ("environment_id", "score", "expected"),
    [
        ("ALE/Breakout-v5", 1.7, 0.0),
        ("ALE/Breakout-v5", 30.5, 100.0),
        ("ALE/Pong-v5", 21.0, 118.130),
        ("ALE/Skiing-v5", -20000.0, -22.740),
        ("MinAtar/Breakout-v1", 10.0, None),
        ("ALE/Adventure-v5", 10.0, None),
        ("my/ALE/Pong-v5", 10.0, None),
        ("CartPole-v1", 10.0, None),
    ],
)
def test_scores_of_the_papers_atari_games_are_on_the_human_scale(environment_id: str, score: float, expected: float | None) -> None:
    assert human_normalised(environment_id, score) == (None if expected is None else pytest.approx(expected, abs=1e-3))


def test_the_references_give_the_papers_scores_the_papers_median() -> None:
    scores = [human_normalised(f"ALE/{name}-v5", score) for name, score in zip(sorted(REFERENCES), PAPER_DEEP, strict=True)]
    assert statistics.median(scores) == pytest.approx(191.8, abs=0.05)


def test_the_references_are_those_of_57_games() -> None:
    """The sums of another transcription of the same table: no number can be wrong alone."""
    assert len(REFERENCES) == 57
    random, human = zip(*REFERENCES.values(), strict=True)
    assert (sum(random), sum(human)) == pytest.approx((50_864.9, 606_494.2), abs=0.05)
