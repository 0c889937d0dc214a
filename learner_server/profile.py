"""--profile: what learner and actors do for some seconds, as one file for a trace viewer."""

import json
import logging
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from learner_server.chrome_trace import chrome_trace
from learner_server.journeys import Batch, Journey
from run_directory.files import write_atomically

log = logging.getLogger(__name__)

# The first steps load and compile what the later ones have.
_FIRST_STEPS = 10

# So much a viewer still opens, and memory holds.
_MOST_UNROLLS = 20_000
_MOST_BATCHES = 20_000
_MOST_STEP_MICROS = 600_000


class Profile:
    """Keeps what is recorded for `seconds`, once training has taken its first steps, and writes it to `path`.

    `tick`, `add_batch` and `close` are for the training thread, `add_journey` for the event loop.

    Attributes:
        recording: whether the seconds have begun and are not over.
    """

    def __init__(self, path: Path, seconds: float, clock: Callable[[], float] = perf_counter) -> None:
        self._path = path
        self._seconds = seconds
        self._clock = clock
        self._steps = 0
        self._began: float | None = None
        self._journeys: list[Journey] = []
        self._batches: list[Batch] = []
        self._step_micros = 0
        self._left_out = dict.fromkeys(("unrolls", "learner_steps", "steps_of_unrolls"), 0)
        self._written = False
        self.recording = False

    @property
    def wants_steps(self) -> bool:
        """Whether there is room for single steps."""
        return self.recording and self._step_micros < _MOST_STEP_MICROS

    def add_journey(self, journey: Journey) -> None:
        """Keeps an unroll that is followed from now on, if there is room."""
        if len(self._journeys) >= _MOST_UNROLLS:
            self._left_out["unrolls"] += 1
            return
        micros = len(journey.trace.step_micros)
        if self._step_micros + micros > _MOST_STEP_MICROS:
            journey.trace = replace(journey.trace, step_micros=array("I"))
            self._left_out["steps_of_unrolls"] += 1
        else:
            self._step_micros += micros
        self._journeys.append(journey)

    def add_batch(self, batch: Batch) -> None:
        """Keeps a batch that was taken, if there is room."""
        if len(self._batches) >= _MOST_BATCHES:
            self._left_out["learner_steps"] += 1
            return
        self._batches.append(batch)

    def count_step(self) -> None:
        """Training has taken one more step."""
        self._steps += 1

    def tick(self) -> None:
        """Begins or ends the recording when it is time to."""
        if self._written:
            return
        if self._began is None:
            if self._steps >= _FIRST_STEPS:
                self._began, self.recording = self._clock(), True
                log.info("profile: records learner and actors for %g s", self._seconds)
        elif self._clock() - self._began >= self._seconds:
            self._write()

    def close(self) -> None:
        """Writes what there is of a recording that the run has not outlived."""
        if self._began is not None and not self._written:
            self._write()
        elif self._began is None:
            log.warning("profile: the run was over before its first %d steps; there is none", _FIRST_STEPS)

    def _write(self) -> None:
        assert self._began is not None
        self.recording, self._written = False, True
        journeys, self._journeys = self._journeys, []
        batches, self._batches = self._batches, []
        about = {"seconds": self._clock() - self._began, "left_out": self._left_out}
        trace = chrome_trace(journeys, batches, began=self._began, about=about)
        whole = sum(journey.batch is not None and journey.batch.trained is not None for journey in journeys)
        try:
            write_atomically(self._path, json.dumps(trace, separators=(",", ":")).encode())
        except OSError as error:  # training goes on, and another profile may be had
            log.error("profile: cannot write to %s: %s", self._path, error.strerror)
        else:
            actors = len({journey.actor for journey in journeys})
            log.info("profile: %d unrolls of %d actors, %d of them trained on: %s", len(journeys), actors, whole, self._path)
