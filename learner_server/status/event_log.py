"""What has happened in a run, newest last: what the learner logs, and what the status page sees by itself."""

import logging
import threading
import time
from collections import deque
from typing import Any

_MOST_EVENTS = 200


class EventLog(logging.Handler):
    """Keeps the newest events, among them what is logged at INFO or above under a logger that it is added to."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._guard = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        try:
            text = record.getMessage()
        except Exception:  # what `logging` prescribes for a record that cannot be formatted
            self.handleError(record)
            return
        self.add(text, level=record.levelname.lower(), at=record.created)

    def add(self, text: str, *, level: str = "info", at: float | None = None) -> None:
        """Adds an event of a moment, in seconds since 1970; now where none is given."""
        with self._guard:
            self._count += 1
            self._events.append({"number": self._count, "at": time.time() if at is None else at, "level": level, "text": text})

    def newest(self) -> list[dict[str, Any]]:
        """Returns the events that are kept, the newest last, as JSON values."""
        with self._guard:
            return list(self._events)
