"""Writes that failed and that training goes on without: counted, and said in the log, at first and then now and then."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from impala.errors import CheckpointError

log = logging.getLogger(__name__)

# What may fail, as `disk_failures` names it. The console counts, for it often goes to a file, and wandb, which may be a network.
WHAT = ("checkpoint", "metrics", "tensorboard", "console", "wandb")

# The same fault comes with every line of metrics, several times a second; the log says it at first and then this often.
_QUIET_SECONDS = 60.0


class DiskFailures:
    """Counts of one process, by what could not be written."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(WHAT, 0)
        self._failed_since: Counter[str] = Counter()
        self._silent_until = dict.fromkeys(WHAT, 0.0)

    @property
    def counts(self) -> dict[str, int]:
        """Failures so far, by what could not be written, those that never failed included."""
        return dict(self._counts)

    @contextmanager
    def survived(self, what: str) -> Iterator[None]:
        """Around a write without which training goes on: a disk that fails is counted and logged, and nothing is raised."""
        try:
            yield
        except (OSError, CheckpointError) as error:
            self._note(what, error)
        else:
            if self._failed_since[what]:
                log.warning("%s: written again, after %d failures", what, self._failed_since.pop(what))
                self._silent_until[what] = 0.0

    def _note(self, what: str, error: Exception) -> None:
        self._counts[what] += 1
        self._failed_since[what] += 1
        now = time.monotonic()
        if now >= self._silent_until[what]:
            self._silent_until[what] = now + _QUIET_SECONDS
            log.error("%s not written, training goes on (failure %d): %s", what, self._counts[what], error)
