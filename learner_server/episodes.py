"""Finished episodes and the run's clock, as the actors report them."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from impala.unroll import Episode

WINDOW = 100


class EpisodeLog:
    """The last 100 returns of each task, and the seconds since the first environment step.

    Written by the event loop, read by training.

    Args:
        counts, recent_returns, seconds: where an earlier process of the run ended, the first two task by task.
    """

    def __init__(
        self, *, counts: Sequence[int] = (0,), recent_returns: Sequence[Sequence[float]] = (), seconds: float = 0.0
    ) -> None:
        self._lock = threading.Lock()
        self._counts = list(counts)
        before = recent_returns or [()] * len(counts)
        self._recent: list[deque[float]] = [deque(returns, maxlen=WINDOW) for returns in before]
        self._seconds_before = seconds
        # Not before this process: an unroll that waited for a learner to come back is older than that.
        self._created = time.monotonic()
        self._started: float | None = None

    def add(self, episodes: Sequence[Episode], age_seconds: float, task: int = 0) -> None:
        """Counts a task's finished episodes; the first call starts the clock, as many seconds ago as the unroll is old."""
        with self._lock:
            if self._started is None:
                self._started = max(self._created, time.monotonic() - age_seconds)
            self._counts[task] += len(episodes)
            self._recent[task].extend(episode.episode_return for episode in episodes)

    @property
    def counts(self) -> list[int]:
        """Episodes finished so far, task by task."""
        with self._lock:
            return list(self._counts)

    @property
    def seconds(self) -> float:
        """Since the first environment step, earlier processes of the run included, the time between them not."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def recent_returns(self) -> list[list[float]]:
        """Up to 100 newest returns of each task, oldest first."""
        with self._lock:
            return [list(recent) for recent in self._recent]

    def mean_returns_100(self) -> list[float | None]:
        """Returns each task's mean return of its last 100 finished episodes; None before there are 100."""
        with self._lock:
            return [sum(recent) / WINDOW if len(recent) == WINDOW else None for recent in self._recent]

    @property
    def mean_return_100(self) -> float | None:
        """The mean over the tasks of their mean returns, which for one task is its own; None before every task has 100 episodes."""
        means = self.mean_returns_100()
        known = [mean for mean in means if mean is not None]
        return sum(known) / len(means) if len(known) == len(means) else None
