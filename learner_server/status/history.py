"""Figures over a whole run, in as many points as a chart has room for, however long the run."""

from collections.abc import Mapping, Sequence
from typing import Any

# Of a chart; a phone shows some 300.
_MOST_POINTS = 600


class History:
    """Means of figures over stretches of lines that grow with the run: whenever there are too many points, two become one.

    Args:
        names: of the figures that are kept.
    """

    def __init__(self, names: Sequence[str], *, most_points: int = _MOST_POINTS) -> None:
        assert most_points % 2 == 0, most_points
        self._names = ("seconds", *names)
        self._most = most_points
        self._stride = 1
        self._points: list[dict[str, float | None]] = []
        self._open: list[dict[str, float | None]] = []

    def add(self, figures: Mapping[str, Any]) -> None:
        """Adds a line of metrics; figures that it lacks are unknown there."""
        self._open.append({name: figures.get(name) for name in self._names})
        if len(self._open) < self._stride:
            return
        self._points.append(_merged(self._open, self._names))
        self._open = []
        if len(self._points) == self._most:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_merged(pair, self._names) for pair in pairs]
            self._stride *= 2

    def columns(self) -> dict[str, list[float | None]]:
        """Returns each figure's points, the newest last, `seconds` among them."""
        points = [*self._points, _merged(self._open, self._names)] if self._open else self._points
        return {name: [point[name] for point in points] for name in self._names}


def _merged(points: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float | None]:
    """Returns the mean of several points; their time is the last one's."""
    merged: dict[str, float | None] = {}
    for name in names:
        known = [value for point in points if (value := point[name]) is not None]
        merged[name] = sum(known) / len(known) if known else None
    merged["seconds"] = points[-1]["seconds"]
    return merged
