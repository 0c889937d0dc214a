"""The faults of a chaos run are the seed's."""

from collections import Counter

from benchmarks.chaos_faults import LASTING, Kind, draw_faults


def test_a_seed_draws_the_same_faults_again_and_another_one_others() -> None:
    assert draw_faults(1, 40, 60.0, 4) == draw_faults(1, 40, 60.0, 4) != draw_faults(2, 40, 60.0, 4)


def test_every_kind_comes_in_its_share() -> None:
    counts = Counter(fault.kind for fault in draw_faults(0, 200, 1800.0, 4))
    assert set(counts) == set(Kind)
    assert counts[Kind.KILL_LEARNER] == counts[Kind.KILL_LEARNER_IN_CHECKPOINT] == 30
    assert counts[Kind.KILL_ACTOR] == 40


def test_faults_come_one_after_the_other_within_the_time_and_to_every_actor() -> None:
    faults = draw_faults(3, 100, 50.0, 4)
    times = [fault.at for fault in faults]
    assert times == sorted(times)
    assert 0.0 <= times[0] < times[-1] <= 50.0
    assert {fault.actor for fault in faults} == {0, 1, 2, 3}


def test_some_faults_last_and_a_few_as_long_as_they_may() -> None:
    faults = draw_faults(0, 200, 1800.0, 4, longest=60.0)
    lasting = [fault.seconds for fault in faults if fault.kind in LASTING]
    assert all(1.0 <= seconds <= 60.0 for seconds in lasting)
    assert 0 < sum(seconds == 60.0 for seconds in lasting) < len(lasting) / 4
    assert all(fault.seconds == 0.0 for fault in faults if fault.kind not in LASTING)
