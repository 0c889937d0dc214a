"""How long an actor's calls took, for the learner to tell a slow network from a full queue."""

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class CallSeconds:
    """Seconds of answered calls: what unrolls stood in line at the learner, the rest of those calls, and fetching weights."""

    line: float = 0.0
    sending: float = 0.0
    fetching: float = 0.0


class CallTimes:
    """Adds up until it is taken. For any threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = CallSeconds()

    def add_submission(self, seconds: float, line: float) -> None:
        """Adds a submission that was answered: how long it took, and how much of that the learner says it stood in line."""
        line = min(max(0.0, line), seconds)  # it is the learner's clock
        with self._lock:
            before = self._seconds
            self._seconds = replace(before, line=before.line + line, sending=before.sending + seconds - line)

    def add_fetch(self, seconds: float) -> None:
        """Adds a call that brought weights."""
        with self._lock:
            self._seconds = replace(self._seconds, fetching=self._seconds.fetching + seconds)

    def take(self) -> CallSeconds:
        """Returns what was added since the last call."""
        with self._lock:
            taken, self._seconds = self._seconds, CallSeconds()
        return taken
