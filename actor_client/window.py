"""How many unrolls an actor may have under way at once: so many that the network's latency costs no time."""

import math
import statistics
import threading
from collections import deque

# Of the newest measurements: the least round trip, which a busy machine prolonged least, and the medians of the others.
_ROUND_TRIPS = 5
_MEDIAN_OF = 9


class Window:
    """Counts unrolls that are under way.

    While one is collected, another may be on its way. Where a round trip takes longer than a collection, as many more come on top
    of what the learner allows as are collected in the rest of it. The time that unrolls wait in line at the learner is taken off:
    where that is what limits, more of them would only grow old. Where one at a time is allowed, nothing is added.

    Args:
        allowed: at once, besides; the one that is being collected included.
        most_on_the_way: at most so many come on top.
    """

    def __init__(self, allowed: int, *, most_on_the_way: int) -> None:
        self._allowed = allowed
        self._most_on_the_way = most_on_the_way if allowed > 1 else 0
        self._changed = threading.Condition()
        self._under_way = 0
        self._on_the_way = 0
        self._open = False
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._collections: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._lines: deque[float] = deque([0.0], maxlen=_MEDIAN_OF)

    @property
    def size(self) -> int:
        """Unrolls that may be under way at once, the one that is being collected included."""
        with self._changed:
            return self._allowed + self._on_the_way

    @property
    def waits_for_answers(self) -> bool:
        """Whether one unroll at a time is under way: collected, sent, answered."""
        return self._allowed == 1

    def enter(self) -> None:
        """Waits until one more may be under way, or for `open`."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._under_way < self._allowed + self._on_the_way)
            self._under_way += 1

    def leave(self) -> None:
        """One was answered."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def open(self) -> None:
        """From now on nobody waits: there is nothing more to collect."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def note_round_trip(self, seconds: float) -> None:
        """Takes in what a call took that has next to nothing to carry or to do."""
        with self._changed:
            self._round_trips.append(seconds)
            self._adjust()

    def note_collection(self, seconds: float) -> None:
        """Takes in what an unroll took to collect."""
        with self._changed:
            self._collections.append(seconds)
            self._adjust()

    def note_line(self, seconds: float) -> None:
        """Takes in what an unroll waited in line for a place at the learner."""
        with self._changed:
            self._lines.append(seconds)
            self._adjust()

    def _adjust(self) -> None:
        if self._round_trips and self._collections:
            collection = max(statistics.median(self._collections), 1e-6)
            travelling = min(self._round_trips) - statistics.median(self._lines)
            wanted = math.ceil(travelling / collection) - 1
            self._on_the_way = min(max(0, wanted), self._most_on_the_way)
            self._changed.notify_all()
