"""The episode log: how many, how good, and for how long the run has lasted."""

from types import SimpleNamespace

import pytest

from impala.unroll import Episode
from learner_server.episodes import EpisodeLog


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("learner_server.episodes.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def episodes(*returns: float) -> list[Episode]:
    return [Episode(episode_return=value, length=1) for value in returns]


def test_there_is_no_mean_before_a_hundred_episodes() -> None:
    log = EpisodeLog()
    log.add(episodes(*range(99)), 0.0)
    assert log.mean_return_100 is None
    log.add(episodes(99.0), 0.0)
    assert log.mean_return_100 == 49.5


def test_the_mean_is_that_of_the_last_hundred() -> None:
    log = EpisodeLog()
    log.add(episodes(*[1000.0] * 150), 0.0)
    log.add(episodes(*range(100)), 0.0)
    assert log.mean_return_100 == 49.5


def test_every_episode_is_counted() -> None:
    log = EpisodeLog()
    for _ in range(3):
        log.add(episodes(*[0.0] * 70), 0.0)
    assert log.counts == [210]


def test_the_newest_returns_come_oldest_first() -> None:
    log = EpisodeLog(recent_returns=[[-1.0]])
    log.add(episodes(*range(99)), 0.0)
    assert log.recent_returns == [[-1.0, *range(99)]]
    log.add(episodes(99.0), 0.0)
    assert log.recent_returns == [list(range(100))]


def test_the_returns_handed_out_are_a_copy() -> None:
    log = EpisodeLog(counts=[7], recent_returns=[[1.0]])
    log.recent_returns[0].clear()
    log.counts[0] = 0
    assert (log.counts, log.recent_returns) == ([7], [[1.0]])


def test_a_resumed_log_goes_on_where_the_last_one_ended() -> None:
    before = EpisodeLog(counts=[0, 0])
    for task in (0, 1):
        before.add(episodes(*range(120)), 0.0, task)
    before.add(episodes(7.0), 0.0, 1)
    after = EpisodeLog(counts=before.counts, recent_returns=before.recent_returns)
    assert (after.counts, after.mean_returns_100()) == ([120, 121], before.mean_returns_100())


def test_each_task_has_returns_of_its_own() -> None:
    log = EpisodeLog(counts=[0, 0, 0])
    log.add(episodes(*[1.0] * 100), 0.0, 0)
    log.add(episodes(*[5.0] * 150), 0.0, 2)
    assert (log.counts, log.mean_returns_100()) == ([100, 0, 150], [1.0, None, 5.0])
    assert [len(returns) for returns in log.recent_returns] == [100, 0, 100]


def test_the_mean_over_tasks_counts_each_task_alike_and_waits_for_all() -> None:
    log = EpisodeLog(counts=[0, 0])
    log.add(episodes(*[1.0] * 500), 0.0, 0)
    log.add(episodes(*[4.0] * 99), 0.0, 1)
    assert log.mean_return_100 is None
    log.add(episodes(4.0), 0.0, 1)
    assert log.mean_return_100 == 2.5


def test_the_clock_starts_with_the_first_step_of_the_first_unroll(clock: Clock) -> None:
    log = EpisodeLog()
    clock.now += 60.0
    assert log.seconds == 0.0
    log.add([], age_seconds=2.0)
    clock.now += 3.0
    assert log.seconds == 5.0


def test_a_later_unroll_does_not_start_the_clock_again(clock: Clock) -> None:
    log = EpisodeLog()
    log.add([], age_seconds=0.0)
    clock.now += 3.0
    log.add([], age_seconds=100.0)
    assert log.seconds == 3.0


def test_seconds_go_on_from_an_earlier_process_without_the_time_between(clock: Clock) -> None:
    log = EpisodeLog(seconds=40.0)
    clock.now += 500.0
    assert log.seconds == 40.0
    log.add([], age_seconds=1.0)
    clock.now += 1.0
    assert log.seconds == 42.0


def test_the_clock_does_not_run_while_no_learner_does() -> None:
    log = EpisodeLog(seconds=100.0)
    log.add([], age_seconds=3600.0)
    assert 100.0 <= log.seconds < 200.0
