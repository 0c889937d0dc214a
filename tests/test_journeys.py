"""Journeys: stages that leave no gap, and add up to the unroll's age whatever is believed of the actor's clock."""

from dataclasses import replace
from itertools import pairwise

import pytest

from impala.unroll_trace import ClockLimits
from learner_server.journeys import PUBLISHING, STEP_END, ahead_of, common_limits
from tests.journeys import make_journey, make_trace


@pytest.mark.parametrize("ahead_seconds", [50.0, 49.0, -3.0, 0.0])
def test_each_stage_begins_where_the_one_before_it_ended(ahead_seconds: float) -> None:
    stages = make_journey().stages(ahead_seconds)
    assert stages[0].begin == 100.0 + ahead_seconds
    assert all(before.end == after.begin for before, after in pairwise(stages))


@pytest.mark.parametrize("ahead_seconds", [50.0, 49.0, 0.0])
def test_the_stages_up_to_the_gradient_add_up_to_the_age(ahead_seconds: float) -> None:
    journey = make_journey()
    stages = [stage for stage in journey.stages(ahead_seconds) if stage.name != PUBLISHING]
    assert stages[-1].name == STEP_END
    assert sum(stage.end - stage.begin for stage in stages) == pytest.approx(journey.age_seconds(ahead_seconds), rel=1e-9)
    # The unroll began at 150, and came at 150.016; its batch was taken 14 ms later, and its step ended in the sixth millisecond.
    assert journey.age_seconds(50.0) == pytest.approx(0.036)


def test_a_journey_that_has_not_ended_has_its_stages_so_far_and_no_age() -> None:
    journey = make_journey(trained=False)
    assert [stage.name for stage in journey.stages(50.0)][-2:] == ["decoding", "in line for a place"]
    assert journey.age_seconds(50.0) is None
    journey = make_journey(trained=False, placed=None)
    assert journey.stages(50.0)[-1].name == "decoding"


def test_a_call_that_was_faster_than_those_before_narrows_the_clock_further() -> None:
    assert make_journey(received=150.0155).limits == ClockLimits(least=49.999, most=pytest.approx(50.0005))


def test_what_all_calls_of_an_actor_say_of_its_clock_goes_for_each() -> None:
    journeys = [
        make_journey(trace=make_trace(at, limits=ClockLimits(least=least, most=60.0)), at=at)
        for at, least in ((100.0, 49.9), (101.0, 49.95), (102.0, 49.0))
    ]
    assert common_limits(journeys) == ClockLimits(least=49.95, most=pytest.approx(50.001))


@pytest.mark.parametrize("least", [49.0, 50.5, 1e9])
def test_nothing_comes_before_it_was_sent_whatever_an_actor_says_of_its_clock(least: float) -> None:
    journey = make_journey(trace=replace(make_trace(), limits=ClockLimits(least=least, most=1e9)))
    wire = next(stage for stage in journey.stages(ahead_of(journey.limits)) if stage.name == "on the wire")
    assert wire.end >= wire.begin
