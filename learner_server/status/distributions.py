"""How values of the last minute were spread, of histograms that only ever grow."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from impala.histogram import Histogram

_WINDOW_SECONDS = 60.0
# Between what is remembered; a line of metrics comes more often.
_STEP_SECONDS = 5.0


class Distributions:
    """Remembers what histograms had counted, and tells what has come since.

    Args:
        histograms: by the names that they are shown under.
    """

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._histograms = histograms
        self._before: deque[tuple[float, dict[str, list[int]]]] = deque()

    def update(self, now: float) -> dict[str, Any]:
        """Returns, by name, `bounds`, and `counts` of the last minute, one more than bounds, as JSON values; `now` in seconds."""
        counts = {name: histogram.counts() for name, histogram in self._histograms.items()}
        if not self._before or now - self._before[-1][0] >= _STEP_SECONDS:
            self._before.append((now, counts))
        while len(self._before) > 1 and now - self._before[1][0] >= _WINDOW_SECONDS:
            self._before.popleft()
        (_, before) = self._before[0]
        return {
            name: {
                "bounds": histogram.bounds,
                "counts": [count - earlier for count, earlier in zip(counts[name], before[name], strict=True)],
            }
            for name, histogram in self._histograms.items()
        }
