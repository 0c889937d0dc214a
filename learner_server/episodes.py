"""Finished episodes and the run's clock, as the actors report them."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from impala.unroll import Episode

WINDOW = 100


class EpisodeLog:
    """The last 100 returns, and the seconds since the first environment step. Written by the event loop, read by training.

    Args:
        count, recent_returns, seconds: where an earlier process of the run ended.
    """

    def __init__(self, *, count: int = 0, recent_returns: Sequence[float] = (), seconds: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._recent: deque[float] = deque(recent_returns, maxlen=WINDOW)
        self._seconds_before = seconds
        # Not before this process: an unroll that waited for a learner to come back is older than that.
        self._created = time.monotonic()
        self._started: float | None = None

    def add(self, episodes: Sequence[Episode], age_seconds: float) -> None:
        """Counts finished episodes; the first call starts the clock, as many seconds ago as the unroll is old."""
        with self._lock:
            if self._started is None:
                self._started = max(self._created, time.monotonic() - age_seconds)
            self._count += len(episodes)
            self._recent.extend(episode.episode_return for episode in episodes)

    @property
    def count(self) -> int:
        """Episodes finished so far."""
        return self._count

    @property
    def seconds(self) -> float:
        """Since the first environment step, earlier processes of the run included, the time between them not."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def recent_returns(self) -> list[float]:
        """Up to 100 newest returns, oldest first."""
        with self._lock:
            return list(self._recent)

    @property
    def mean_return_100(self) -> float | None:
        """The mean return of the last 100 finished episodes; None before there are 100."""
        with self._lock:
            return sum(self._recent) / WINDOW if len(self._recent) == WINDOW else None
