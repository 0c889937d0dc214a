"""What an actor tells of an unroll's way: taken as it was sent, and nothing taken that could not be drawn."""

from typing import Any

import pytest

from impala.errors import InvalidMessage
from impala.unroll_trace import ClockLimits, step_micros
from impala.wire import decode_trace, encode_trace
from protos import impala_pb2 as pb
from tests.journeys import make_trace


def message(**fields: Any) -> pb.UnrollTrace:
    made = encode_trace(make_trace())
    for name, value in fields.items():
        if name == "step_micros":
            made.step_micros[:] = value
        else:
            setattr(made, name, value)
    return made


def test_a_trace_comes_as_it_was_sent() -> None:
    trace = make_trace()
    assert decode_trace(pb.UnrollTrace.FromString(encode_trace(trace).SerializeToString()), unroll_length=2) == trace


def test_an_actor_may_keep_its_single_steps_to_itself() -> None:
    assert len(decode_trace(message(step_micros=[]), unroll_length=2).step_micros) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e11, -1e300])
@pytest.mark.parametrize("name", ["waited", "began", "collected", "encoded", "sent", "clock_least", "clock_most"])
def test_moments_are_finite_and_no_clock_counts_from_before_time(name: str, value: float) -> None:
    with pytest.raises(InvalidMessage, match=rf"trace\.{name}: expected seconds within 1e\+10 of 0"):
        decode_trace(message(**{name: value}), unroll_length=2)


@pytest.mark.parametrize(
    ("name", "before"), [("began", "waited"), ("collected", "began"), ("encoded", "collected"), ("sent", "encoded")]
)
def test_no_moment_is_before_the_one_that_it_follows(name: str, before: str) -> None:
    earlier = getattr(make_trace(), before) - 1e-6
    with pytest.raises(InvalidMessage, match=rf"trace\.{name}: expected no less than {before}"):
        decode_trace(message(**{name: earlier}), unroll_length=2)


@pytest.mark.parametrize("count", [1, 5, 7, 600])
def test_there_are_three_durations_for_each_step(count: int) -> None:
    with pytest.raises(InvalidMessage, match=rf"trace\.step_micros: expected 6 durations, or none, came {count}"):
        decode_trace(message(step_micros=[1] * count), unroll_length=2)


def test_steps_take_no_longer_than_the_unroll_did() -> None:
    assert decode_trace(message(step_micros=[0, 0, 0, 0, 0, 10_000]), unroll_length=2)
    with pytest.raises(InvalidMessage, match=r"trace\.step_micros: expected no more in all than the 100\d\d of collecting"):
        decode_trace(message(step_micros=[0, 0, 0, 0, 0, 10_100]), unroll_length=2)


def test_rounded_steps_add_up_to_what_all_of_them_took() -> None:
    began = 1e6 + 1 / 3
    moments = [began + 1.4e-6 * (index + 1) for index in range(3_000)]
    assert sum(step_micros(began, moments)) == round((moments[-1] - began) * 1e6)


def test_a_step_of_hours_has_as_much_as_the_wire_has_room_for() -> None:
    assert list(step_micros(0.0, [1.0, 1.0 + 9_000.0])) == [1_000_000, 2**32 - 1]


def test_every_call_narrows_between_what_the_clocks_differ() -> None:
    limits = ClockLimits(least=-3.0, most=5.0).narrowed(least=-4.0, most=2.0).narrowed(least=-1.0, most=9.0)
    assert limits == ClockLimits(least=-1.0, most=2.0)
    assert (limits.ahead_seconds, limits.uncertainty_seconds) == (0.5, 1.5)
