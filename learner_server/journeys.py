"""The way of one unroll from its first step to the gradient, as stages of which each begins where the one before it ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from impala.unroll_trace import ClockLimits, UnrollTrace

# At the actor, on the way, and at the learner until its batch is taken.
ACTOR_STAGES = ("collecting", "encoding", "waiting to be sent")
WIRE = "on the wire"
LEARNER_STAGES = ("decoding", "in line for a place", "in the queue")

# Of a batch, in the order in which they come; what a device that is not the CPU does is not told apart.
BATCHING, TO_DEVICE, BEFORE_STEP = "batching", "to the device", "waiting for the step"
FORWARD, LOSS, BACKWARD, OPTIMISER, GIVEN = "forward", "V-trace and losses", "backward", "optimiser", "given to the device"
STEP_PARTS = (FORWARD, LOSS, BACKWARD, OPTIMISER, GIVEN)
STEP_END = "finishing the step"
PUBLISHING = "publishing"


class Stage(NamedTuple):
    """A part of the way; moments are seconds by the learner's clock."""

    name: str
    begin: float
    end: float


def contiguous(begin: float, ends: Iterable[tuple[str, float | None]]) -> list[Stage]:
    """Returns stages one after the other from `begin` on, up to the first whose end is not known."""
    stages: list[Stage] = []
    for name, end in ends:
        if end is None:
            break
        stages.append(Stage(name, begin, end))
        begin = end
    return stages


@dataclass(eq=False, kw_only=True)
class Batch:
    """A batch on its way through the learner.

    Attributes:
        taken: when its unrolls left the queue.
        marks: its stages so far, each with its end.
        journeys: of its unrolls, those that are followed.
        unrolls: that it has, those included.
        version: of the weights that came of it; None before, and where its step was skipped.
    """

    taken: float
    marks: list[tuple[str, float]] = field(default_factory=list)
    journeys: list["Journey"] = field(default_factory=list)
    unrolls: int = 0
    version: int | None = None

    @property
    def stages(self) -> list[Stage]:
        """From when it was taken on."""
        return contiguous(self.taken, self.marks)

    @property
    def step(self) -> list[Stage]:
        """The parts of the learner step."""
        return [stage for stage in self.stages if stage.name in (*STEP_PARTS, STEP_END)]

    @property
    def trained(self) -> float | None:
        """When its gradient step had ended."""
        return next((end for name, end in self.marks if name == STEP_END), None)


@dataclass(eq=False, kw_only=True)
class Journey:
    """An unroll on its way.

    Attributes:
        actor_id, incarnation, sequence: which unroll.
        version: of the weights that acted.
        trajectories: E.
        trace: its moments at the actor, by the actor's clock.
        received, decoded, placed, taken: its message was there; it is valid; it has a place; its first columns were taken.
        batch: that those went into.
    """

    actor_id: str
    incarnation: int
    sequence: int
    version: int
    trajectories: int
    trace: UnrollTrace
    received: float
    decoded: float
    placed: float | None = None
    taken: float | None = None
    batch: Batch | None = None

    @property
    def actor(self) -> tuple[str, int]:
        """The process that it comes from, and with it the clock."""
        return self.actor_id, self.incarnation

    @property
    def limits(self) -> ClockLimits:
        """Those that the actor knew when it sent, and that this call adds."""
        most = min(self.trace.limits.most, self.received - self.trace.sent)
        return ClockLimits(least=self.trace.limits.least, most=most)

    def began(self, ahead_seconds: float) -> float:
        """Returns when it began to be collected, by the learner's clock, which is so far ahead of the actor's."""
        return self.trace.began + ahead_seconds

    def stages(self, ahead_seconds: float) -> list[Stage]:
        """Returns its stages so far, contiguous whatever `ahead_seconds` is: by it the actor's move, and the wire gives way."""
        moments = (self.trace.collected, self.trace.encoded, self.trace.sent)
        at_actor = zip(ACTOR_STAGES, (moment + ahead_seconds for moment in moments), strict=True)
        here = zip(LEARNER_STAGES, (self.decoded, self.placed, self.taken), strict=True)
        ends = [*at_actor, (WIRE, self.received), *here, *(self.batch.marks if self.batch else ())]
        return contiguous(self.began(ahead_seconds), ends)

    def age_seconds(self, ahead_seconds: float) -> float | None:
        """Returns the time from its first step to the end of its gradient step; None while that has not ended."""
        trained = None if self.batch is None else self.batch.trained
        return None if trained is None else trained - self.began(ahead_seconds)


def common_limits(journeys: Sequence[Journey]) -> ClockLimits:
    """Returns what all journeys of one actor say of its clock.

    Clocks that run at different speeds, or an actor that makes up its numbers, may cross the limits. `most` then counts, which
    nothing but the calls themselves can lower: no unroll of them comes before it was sent.
    """
    limits = journeys[0].limits
    for journey in journeys[1:]:
        limits = limits.narrowed(least=journey.limits.least, most=journey.limits.most)
    return limits


def ahead_of(limits: ClockLimits) -> float:
    """Returns how far the learner's clock is ahead, never so far that a message comes before it was sent."""
    return min(limits.ahead_seconds, limits.most)
