"""The codec of what an actor tells of an unroll's way, for a learner that records it."""

import math
from array import array
from itertools import pairwise

from impala.errors import InvalidMessage
from impala.unroll_trace import STEP_PARTS, ClockLimits, UnrollTrace
from protos import impala_pb2 as pb

# In the order in which they come.
_MOMENTS = ("waited", "began", "collected", "encoded", "sent")

# Clocks count from somewhere; one that shows more than three hundred years has no microseconds left.
_MOST_SECONDS = 1e10

# Rounding.
_SLACK_MICROS = 2.0


def encode_trace(trace: UnrollTrace) -> pb.UnrollTrace:
    """Returns an unroll's way as a message."""
    return pb.UnrollTrace(
        **{name: getattr(trace, name) for name in _MOMENTS},
        step_micros=trace.step_micros,
        clock_least=trace.limits.least,
        clock_most=trace.limits.most,
    )


def decode_trace(message: pb.UnrollTrace, *, unroll_length: int) -> UnrollTrace:
    """Returns an unroll's way.

    Raises:
        InvalidMessage: a moment that is not finite, absurdly large or before the one that it follows; another number of steps, or
            steps that take longer than all of them did.
    """
    numbers = {name: float(getattr(message, name)) for name in (*_MOMENTS, "clock_least", "clock_most")}
    for name, value in numbers.items():
        if not -_MOST_SECONDS <= value <= _MOST_SECONDS:  # nor NaN
            raise InvalidMessage(f"trace.{name}", f"seconds within {_MOST_SECONDS:g} of 0", f"{value}")
    for before, after in pairwise(_MOMENTS):
        if numbers[after] < numbers[before]:
            raise InvalidMessage(f"trace.{after}", f"no less than {before}, {numbers[before]}", f"{numbers[after]}")
    expected = len(STEP_PARTS) * unroll_length
    # Before they are copied.
    if len(message.step_micros) not in (0, expected):
        raise InvalidMessage("trace.step_micros", f"{expected} durations, or none", f"{len(message.step_micros)}")
    steps = array("I", message.step_micros)
    most = math.ceil((numbers["collected"] - numbers["began"]) * 1e6 + _SLACK_MICROS)
    if sum(steps) > most:
        raise InvalidMessage("trace.step_micros", f"no more in all than the {most} of collecting", f"{sum(steps)}")
    limits = ClockLimits(least=numbers["clock_least"], most=numbers["clock_most"])
    return UnrollTrace(**{name: numbers[name] for name in _MOMENTS}, limits=limits, step_micros=steps)
