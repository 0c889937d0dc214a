"""The verdict: what limits a run, from who waits for what."""

from dataclasses import replace
from typing import Any

import pytest

from learner_server.verdict import Limit, VerdictWindow, Waits, judge

# Neither side waits.
EVEN = Waits(
    learner=0.1,
    actor=0.1,
    environment=0.4,
    inference=0.4,
    line=0.0,
    sending=0.05,
    fetching=0.05,
    learner_starved=0.1,
    actor_starved=0.1,
    ingest=0.1,
    lag=2.0,
)


def judged(**changed: float) -> Limit:
    return judge(replace(EVEN, **changed)).limit


def test_where_nobody_waits_nothing_is_the_limit() -> None:
    assert judged() is Limit.BALANCED


def test_a_learner_that_never_waits_is_the_limit_of_actors_that_do() -> None:
    assert judged(actor=0.6, line=0.5) is Limit.LEARNER
    # Where a learner is busy, that actors have no core while they catch up changes nothing.
    assert judged(actor=0.6, line=0.5, actor_starved=0.9) is Limit.LEARNER


def test_actors_that_never_wait_are_the_limit_of_a_learner_that_does() -> None:
    assert judged(learner=0.6, environment=0.7) is Limit.ENVIRONMENT
    assert judged(learner=0.6, inference=0.7) is Limit.INFERENCE


@pytest.mark.parametrize(
    ("changed", "limit"),
    [
        ({"sending": 0.7}, Limit.NETWORK_IN),
        ({"fetching": 0.7}, Limit.NETWORK_OUT),
        ({"sending": 0.7, "ingest": 0.9}, Limit.INGEST),
        ({"line": 0.6, "sending": 0.5}, Limit.QUEUE),
        ({"sending": 0.3, "fetching": 0.3}, Limit.QUEUE),
    ],
)
def test_where_both_wait_it_is_what_lies_between_them(changed: dict[str, float], limit: Limit) -> None:
    assert judged(learner=0.5, actor=0.7, **changed) is limit


@pytest.mark.parametrize(
    "changed",
    [
        {"learner_starved": 0.5},
        {"learner": 0.6, "actor_starved": 0.5},
        {"learner": 0.5, "actor": 0.7, "sending": 0.7, "actor_starved": 0.5},
    ],
)
def test_threads_that_find_no_core_come_before_what_they_then_are_slow_at(changed: dict[str, float]) -> None:
    assert judged(**changed) is Limit.PROCESSOR


def test_weights_that_come_late_are_a_limit_even_where_nobody_waits() -> None:
    late = {"lag": 30.0, "fetching": 0.9}
    assert judged(**late) is Limit.NETWORK_OUT
    assert judged(**late, sending=0.95) is Limit.BALANCED
    assert judged(lag=30.0) is Limit.BALANCED


def test_a_verdict_says_what_shows_it_and_what_to_try_next() -> None:
    verdict = judge(replace(EVEN, learner=0.64, environment=0.82))
    assert verdict.evidence == "the learner waits 64% of its time, actors step environments for 82% of theirs"
    assert verdict.sentence.startswith("environment: the learner waits 64% of its time")
    assert verdict.sentence.endswith("Next: more actors on cores that have nothing else to do, or a faster --vectorization.")


# --- Over the lines of a run


def line(*, actors: int = 2, **changed: float | None) -> dict[str, Any]:
    return {
        "actors": actors,
        "learner_wait_fraction": 0.1,
        "actor_wait_fraction": 0.6,
        "actor_environment_fraction": 0.2,
        "actor_inference_fraction": 0.2,
        "actor_line_fraction": 0.5,
        "actor_sending_fraction": 0.1,
        "actor_fetching_fraction": 0.1,
        "learner_starved_fraction": 0.0,
        "actor_starved_fraction": 0.0,
        "ingest_fraction": 0.1,
        "policy_lag_mean": 2.0,
        **changed,
    }


def test_a_single_interval_turns_no_verdict_over_but_ten_seconds_do() -> None:
    window, starving = VerdictWindow(), line(learner_wait_fraction=0.9, actor_wait_fraction=0.0, actor_environment_fraction=0.9)
    for second in range(10):
        assert window.update(float(second), line()).limit is Limit.LEARNER
    assert window.update(10.0, starving).limit is Limit.LEARNER
    for second in range(11, 21):
        verdict = window.update(float(second), starving)
    assert verdict.limit is Limit.ENVIRONMENT


def test_of_actors_that_say_nothing_of_their_time_that_is_said() -> None:
    silent = {name: None for name in line() if name.startswith("actor_")}
    verdict = VerdictWindow().update(0.0, line(**silent))
    assert (verdict.limit, verdict.evidence) == (Limit.NOTHING_YET, "actors do not say what they spend their time on")
    assert "no updates" in VerdictWindow().update(0.0, line(policy_lag_mean=None, **silent)).evidence


def test_without_updates_or_actors_there_is_nothing_to_judge() -> None:
    window = VerdictWindow()
    assert window.update(0.0, line(policy_lag_mean=None)).limit is Limit.NOTHING_YET
    assert window.update(1.0, line(actors=0)).limit is Limit.ACTORS
    # What one interval does not have the others may.
    assert window.update(2.0, line()).limit is Limit.LEARNER
