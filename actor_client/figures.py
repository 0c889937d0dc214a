"""What an actor process has done so far, over all the learners that it has called."""

import threading
from collections import Counter

from impala.histogram import Histogram
from impala.unroll import ActorTimes

# Thirds of a decade, from what a call costs at the least to the longest that one may wait.
SECONDS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

METHODS = ("Join", "GetParameters", "SubmitTrajectory")
# What an unroll's time goes into, and what is left of it: encoding and sending above all. What calls take overlaps with these.
_PARTS = ("environment", "inference", "waiting")
_REST = "other"


class ActorFigures:
    """Counts since the process started. Any thread may add; whoever reads holds `lock` meanwhile.

    Attributes:
        env_steps, unrolls, episodes: collected and handed on to be sent, reset rows left out.
        stale_unrolls: that the learner refused as too old.
        reconnects: times that a learner answered again after it had not.
        reached: whether it answered last.
        version: of the weights that acted last; 0 before the first.
        seconds: of the actor's thread, by what it went into, and what is left of the total as "other".
        unroll_seconds: from the end of one collection to the end of the next.
        rpc: seconds that each call took, failed ones included, by method.
        failed_calls: by method and gRPC status; the client makes most of them again.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.env_steps = self.unrolls = self.episodes = self.stale_unrolls = self.reconnects = self.version = 0
        self.reached = self._was_reached = False
        self.seconds = dict.fromkeys((*_PARTS, _REST), 0.0)
        self.unroll_seconds = Histogram(SECONDS)
        self.rpc = {method: Histogram(SECONDS) for method in METHODS}
        self.failed_calls: Counter[tuple[str, str]] = Counter()

    def note_unroll(self, env_steps: int, episodes: int, version: int, times: ActorTimes) -> None:
        """Takes in an unroll that was collected."""
        parts = {name: getattr(times, name) for name in _PARTS}
        with self.lock:
            self.env_steps += env_steps
            self.unrolls += 1
            self.episodes += episodes
            self.version = version
            for what, seconds in {**parts, _REST: max(0.0, times.total - sum(parts.values()))}.items():
                self.seconds[what] += seconds
            self.unroll_seconds.add(times.total)

    def note_call(self, method: str, seconds: float, status: str = "OK") -> None:
        """Takes in a call that ended, with the name of its gRPC status."""
        with self.lock:
            self.rpc[method].add(seconds)
            if status != "OK":
                self.failed_calls[method, status] += 1

    def note_stale(self) -> None:
        """Takes in that an unroll was refused as too old."""
        with self.lock:
            self.stale_unrolls += 1

    def note_reached(self, reached: bool) -> None:
        """Takes in whether the learner answers."""
        with self.lock:
            self.reconnects += reached and self._was_reached and not self.reached
            self.reached, self._was_reached = reached, self._was_reached or reached
