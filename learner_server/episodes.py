"""Finished episodes and the run's clock, as the actors report them."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from impala.unroll import Episode

WINDOW = 100


class EpisodeLog:
    """The last 100 returns of each task, and the seconds since the first environment step.

    Written by the event loop, read by training.

    Args:
        counts, recent_returns, seconds: where an earlier process of the run ended, the first two task by task.
        tells: keep what comes until `take` fetches it.
    """

    def __init__(
        self,
        *,
        counts: Sequence[int] = (0,),
        recent_returns: Sequence[Sequence[float]] = (),
        seconds: float = 0.0,
        tells: bool = False,
    ) -> None:
        self._lock = threading.Lock()
        self._counts = list(counts)
        before = recent_returns or [()] * len(counts)
        self._recent: list[deque[float]] = [deque(returns, maxlen=WINDOW) for returns in before]
        self._tells = tells
        self._news: list[list[float]] = [[] for _ in self._counts]
        self._seconds_before = seconds
        # Not before this process: an unroll that waited for a learner to come back is older than that.
        self._created = time.monotonic()
        self._started: float | None = None

    def add(self, episodes: Sequence[Episode], age_seconds: float, task: int = 0) -> None:
        """Counts a task's finished episodes; the first call starts the clock, as many seconds ago as the unroll is old."""
        with self._lock:
            if self._started is None:
                self._started = max(self._created, time.monotonic() - age_seconds)
            returns = [episode.episode_return for episode in episodes]
            self._count(task, returns)
            if self._tells:
                self._news[task].extend(returns)

    def take(self) -> dict[str, Any]:
        """Returns, as JSON values, for the log of another learner: the returns since the last call, task by task, and the clock."""
        with self._lock:
            news: dict[str, Any] = {"returns": self._news, "started_seconds_ago": None}
            self._news = [[] for _ in self._counts]
            if self._started is not None:
                news["started_seconds_ago"] = time.monotonic() - self._started
            return news

    def add_news(self, news: Mapping[str, Any]) -> None:
        """Counts what `take` of another learner's log returned."""
        with self._lock:
            for task, returns in enumerate(news["returns"]):
                self._count(task, returns)
            if news["started_seconds_ago"] is not None:
                started = max(self._created, time.monotonic() - news["started_seconds_ago"])
                self._started = started if self._started is None else min(self._started, started)

    def _count(self, task: int, returns: Sequence[float]) -> None:
        self._counts[task] += len(returns)
        self._recent[task].extend(returns)

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
