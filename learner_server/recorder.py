"""Follows unrolls through the learner, for a profile and for spans."""

import weakref
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from impala.unroll import Unroll
from impala.unroll_trace import UnrollTrace
from learner_server.journeys import BATCHING, BEFORE_STEP, PUBLISHING, STEP_END, TO_DEVICE, Batch, Journey
from learner_server.profile import Profile
from learner_server.spans import Spans


class Recorder:
    """Notes when an unroll gets where.

    It is followed by the object that stands for it from decoding to its batch. One that is dropped on the way is forgotten with
    that object. One that is wider than what a batch needs is followed with its first columns.

    `follow` is for the event loop, `placed` for whichever thread gives a place, the rest for the training thread.

    Args:
        profile: what is recorded for some seconds; None for none.
        spans: where each journey goes when it has ended; None for nowhere.
    """

    def __init__(
        self, *, profile: Profile | None = None, spans: Spans | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._profile = profile
        self._spans = spans
        self._clock = clock
        # By the identity of the unroll, while that lives. Single operations on a dict, for an unroll may die on any thread.
        self._journeys: dict[int, tuple[weakref.ref[Unroll[np.ndarray]], Journey]] = {}
        self._taking: Batch | None = None
        # Taken, and not yet trained on, the oldest first.
        self._fetched: deque[Batch] = deque()
        self._training: Batch | None = None

    def now(self) -> float:
        """Returns the moment, by the clock of everything here."""
        return self._clock()

    @property
    def on(self) -> bool:
        """Whether unrolls are followed now."""
        return self._spans is not None or (self._profile is not None and self._profile.recording)

    @property
    def wants_steps(self) -> bool:
        """Whether actors are to tell of single steps."""
        return self._profile is not None and self._profile.wants_steps

    def follow(
        self, unroll: Unroll[np.ndarray], *, actor_id: str, incarnation: int, sequence: int, trace: UnrollTrace, received: float
    ) -> None:
        """Follows an unroll that was decoded just now."""
        journey = Journey(
            actor_id=actor_id,
            incarnation=incarnation,
            sequence=sequence,
            version=int(unroll.parameter_version[0]),
            trajectories=unroll.environments,
            trace=trace,
            received=received,
            decoded=self._clock(),
        )
        key, journeys = id(unroll), self._journeys
        journeys[key] = weakref.ref(unroll, lambda _: journeys.pop(key, None)), journey
        if self._profile is not None and self._profile.recording:
            self._profile.add_journey(journey)

    def placed(self, unroll: Unroll[np.ndarray]) -> None:
        """An unroll has a place in the queue."""
        if id(unroll) in self._journeys:
            self._journeys[id(unroll)][1].placed = self._clock()

    def taken(self, unroll: Unroll[np.ndarray]) -> None:
        """An unroll, or the first columns of it, left the queue for the batch that is being taken."""
        if self._taking is None:
            self._taking = Batch(taken=self._clock())
        self._taking.unrolls += 1
        _, journey = self._journeys.pop(id(unroll), (None, None))
        if journey is not None:
            # Of the whole batch: its unrolls leave the queue at one instant.
            journey.taken, journey.batch = self._taking.taken, self._taking
            self._taking.journeys.append(journey)

    def batched(self) -> None:
        """The batch that was taken is one, replayed trajectories included."""
        self._mark(self._taking, BATCHING)

    def uploaded(self) -> None:
        """Its way to the device has begun, or is over."""
        self._mark(self._taking, TO_DEVICE)
        if self._taking is not None:
            self._fetched.append(self._taking)
            if self._profile is not None and self._profile.recording:
                self._profile.add_batch(self._taking)
        self._taking = None

    def begin_step(self, *, idle: bool) -> None:
        """The step on the oldest of the batches begins, or one on nothing."""
        self._training = self._fetched.popleft() if self._fetched and not idle else None
        self._mark(self._training, BEFORE_STEP)

    def stage(self, name: str) -> None:
        """A part of the step has ended."""
        self._mark(self._training, name)

    def end_step(self) -> None:
        """The step has ended."""
        self._mark(self._training, STEP_END)
        if self._profile is not None:
            self._profile.count_step()

    def published(self, version: int | None) -> None:
        """What came of the step is there for actors; None where it was skipped."""
        if self._training is None:
            return
        self._mark(self._training, PUBLISHING)
        self._training.version = version
        if self._spans is not None:
            for journey in self._training.journeys:
                self._spans.export(journey)
        self._training = None

    def tick(self) -> None:
        """Lets a profile begin or end. For every turn of the training loop."""
        if self._profile is not None:
            self._profile.tick()

    def close(self) -> None:
        """Writes what there is."""
        if self._profile is not None:
            self._profile.close()
        if self._spans is not None:
            self._spans.close()

    def _mark(self, batch: Batch | None, stage: Any) -> None:
        if batch is not None:
            batch.marks.append((stage, self._clock()))
