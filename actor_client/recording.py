"""Whether the learner records what becomes of unrolls, and what an actor then notes of its own."""

import math
import threading
from collections.abc import Callable
from time import perf_counter

from impala.unroll_trace import ClockLimits, UnrollTrace, step_micros


class Draft:
    """What is known of an unroll's way while it is made.

    Attributes:
        waited, began: see `UnrollTrace`.
        collected: the same, to be set.
        moments: of each step three: choosing begins, stepping begins, stepping ends; None where the learner does not ask for them.
    """

    def __init__(self, *, waited: float, began: float, steps: bool) -> None:
        self.waited = waited
        self.began = self.collected = began
        self.moments: list[float] | None = [] if steps else None


class Recording:
    """Keeps what the learner's answers say of its recording, and between what limits its clock differs from this process's.

    Any thread. All moments are those of `clock`, which never goes back.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._limits: ClockLimits | None = None
        self._steps = False

    def note(self, *, sent: float, received: float, answered: float, came: float, steps: bool) -> None:
        """An answer says that the learner records.

        Args:
            sent, came: when the call was made and the answer came, by this process's clock.
            received, answered: when the call came and the answer was sent, by the learner's.
            steps: single steps are wanted too.
        """
        least, most = answered - came, received - sent
        if not (math.isfinite(least) and math.isfinite(most)):
            return
        with self._lock:
            before = self._limits or ClockLimits(least=least, most=most)
            self._limits = before.narrowed(least=least, most=most)
            self._steps = steps

    def end(self) -> None:
        """An answer says nothing of a recording; or the next will come from another learner, whose clock may be another."""
        if self._limits is not None:
            with self._lock:
                self._limits = None

    def begin(self, waited: float) -> Draft | None:
        """Returns what to note of the unroll that is collected from now on; None while the learner does not record."""
        if self._limits is None:
            return None
        return Draft(waited=waited, began=self.clock(), steps=self._steps)

    def finish(self, draft: Draft) -> UnrollTrace | None:
        """Returns the way of an unroll whose message is made now and sent at once; None where the recording has ended meanwhile."""
        limits = self._limits
        if limits is None:
            return None
        now = self.clock()
        return UnrollTrace(
            waited=draft.waited,
            began=draft.began,
            collected=draft.collected,
            encoded=now,
            sent=now,
            limits=limits,
            step_micros=step_micros(draft.began, draft.moments or ()),
        )
