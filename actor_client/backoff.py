"""How long to wait before trying again: exponential, jittered, bounded."""

import random


class Backoff:
    """Delays that double from `first` to `most` seconds, each drawn from the upper half of its range.

    Jitter, so that a thousand actors that lost the same learner do not return in the same instant.
    """

    def __init__(self, *, first: float = 0.1, most: float = 3.0) -> None:
        self._first = first
        self._most = most
        self._attempts = 0

    def next_delay(self) -> float:
        """Returns the seconds to wait before the next attempt."""
        ceiling = min(self._most, self._first * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 30)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Starts over, after a success."""
        self._attempts = 0
