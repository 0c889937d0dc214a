"""Journeys of unrolls for tests: moments as they might be, all valid unless a test makes them otherwise."""

from array import array
from typing import Any

from impala.unroll_trace import ClockLimits, UnrollTrace
from learner_server.journeys import BACKWARD, BATCHING, BEFORE_STEP, FORWARD, PUBLISHING, STEP_END, TO_DEVICE, Batch, Journey

# Of two steps: rest, inference, environment, in microseconds.
STEPS = array("I", [100, 2_000, 3_000, 400, 1_000, 2_500])


def make_trace(at: float = 100.0, **fields: Any) -> UnrollTrace:
    """Returns the trace of an unroll that began to be collected at `at`, of an actor whose clock is 50 s behind the learner's."""
    given: dict[str, Any] = {
        "waited": at - 0.01,
        "began": at,
        "collected": at + 0.01,
        "encoded": at + 0.012,
        "sent": at + 0.015,
        "limits": ClockLimits(least=49.999, most=50.002),
        "step_micros": STEPS,
    }
    return UnrollTrace(**{**given, **fields})


def make_batch(taken: float = 150.03) -> Batch:
    """Returns a batch that was trained on, of stages that take a millisecond each."""
    names = (BATCHING, TO_DEVICE, BEFORE_STEP, FORWARD, BACKWARD, STEP_END, PUBLISHING)
    return Batch(
        taken=taken, marks=[(name, taken + 0.001 * count) for count, name in enumerate(names, start=1)], unrolls=1, version=7
    )


def make_journey(*, trained: bool = True, at: float = 100.0, **fields: Any) -> Journey:
    """Returns the journey of such an unroll, which came 50.016 s after that by the learner's clock."""
    came = at + 50.016
    given: dict[str, Any] = {
        "actor_id": "a",
        "incarnation": 3,
        "sequence": 1,
        "version": 5,
        "trajectories": 2,
        "trace": make_trace(at),
        "received": came,
        "decoded": came + 0.002,
        "placed": came + 0.003,
    }
    journey = Journey(**{**given, **fields})
    if trained:
        journey.taken, journey.batch = came + 0.014, make_batch(came + 0.014)
        journey.batch.journeys.append(journey)
    return journey
