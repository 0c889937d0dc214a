"""What became of an unroll at its actor, by the actor's clock, and what is known of how that differs from the learner's."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

# Of each step, in this order.
STEP_PARTS = ("rest", "inference", "environment")

# What the wire has room for: more than an hour.
_MOST_MICROS = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class ClockLimits:
    """What the learner's clock shows less what an actor's does is between these, in seconds.

    Every call and its answer say so: neither came before it was sent. `least` is the largest difference of when an answer was sent
    and when it came, `most` the smallest of when a call came and when it was sent. The fastest message in each direction decides.
    """

    least: float
    most: float

    def narrowed(self, *, least: float, most: float) -> "ClockLimits":
        """Returns the limits that one more call leaves."""
        return ClockLimits(least=max(self.least, least), most=min(self.most, most))

    @property
    def ahead_seconds(self) -> float:
        """The middle."""
        return (self.least + self.most) / 2

    @property
    def uncertainty_seconds(self) -> float:
        """By how much the middle may be wrong. Clocks that run at different speeds may have crossed the limits."""
        return abs(self.most - self.least) / 2


@dataclass(frozen=True, kw_only=True)
class UnrollTrace:
    """Moments of an unroll at its actor, in seconds by the actor's clock, none before the one above it.

    Attributes:
        waited: the actor was done with the unroll before, and waited for a place and for weights.
        began: it began to collect.
        collected: all T steps were taken.
        encoded: the message was made.
        sent: the call was made that brought it.
        limits: of the learner's clock less the actor's.
        step_micros: 3 T durations in microseconds since `began`, of each step those of STEP_PARTS; or none.
    """

    waited: float
    began: float
    collected: float
    encoded: float
    sent: float
    limits: ClockLimits
    step_micros: Sequence[int] = field(default_factory=lambda: array("I"))


def step_micros(began: float, moments: Sequence[float]) -> "array[int]":
    """Returns the durations between moments, from `began` on, in microseconds; their sum is off by no more than each of them."""
    ends = [round((moment - began) * 1e6) for moment in moments]
    return array("I", [min(end - begin, _MOST_MICROS) for begin, end in zip([0, *ends], ends, strict=False)])
