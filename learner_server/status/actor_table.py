"""The actors of a run as a table: how fast each is, how old its weights, how it fares."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from learner_server.actor_registry import Actor

# An actor is silent when it has not called for this long, or for longer where its calls are usually further apart.
_SILENT_SECONDS = 5.0
# Over which steps a second are counted.
_RATE_SECONDS = 10.0
# An actor is slow that makes less than this share of what the median actor makes; a few are too few to compare.
_SLOW_SHARE = 0.25
_FEWEST_TO_COMPARE = 4
# Refusals count as news for so long.
_REFUSED_SECONDS = 60.0
# Actors that have gone are shown for so long.
_REMEMBERED_SECONDS = 3600.0


@dataclass
class _Track:
    """What is remembered of one actor between two looks at it."""

    refused: int
    samples: list[tuple[float, int]] = field(default_factory=list)
    refused_at: float = float("-inf")


class ActorTable:
    """Looks at the registry's actors now and then, and knows what has changed since.

    Args:
        max_policy_lag: beyond which unrolls are refused: half of it is late.
        environments: of an actor that did not choose how many.
    """

    def __init__(self, max_policy_lag: int, environments: int) -> None:
        self._environments = environments
        self._late = max(1, max_policy_lag // 2)
        self._tracks: dict[str, _Track] = {}

    def rows(self, now: float, actors: Sequence[Actor], version: int) -> list[dict[str, Any]]:
        """Returns a row for each actor that takes part or has gone within the hour, as JSON values.

        Args:
            now: by `time.monotonic`, like the actors' `last_seen`.
            version: of the newest weights.
        """
        shown = [actor for actor in actors if actor.joins and now - actor.last_seen <= _REMEMBERED_SECONDS]
        self._tracks = {actor.actor_id: self._track(now, actor) for actor in shown}
        rows = [self._row(now, actor, version) for actor in shown]
        self._mark_slow(rows)
        return rows

    def _track(self, now: float, actor: Actor) -> _Track:
        track = self._tracks.get(actor.actor_id)
        if track is None:
            track = _Track(actor.refused)
        if actor.refused > track.refused:
            track.refused, track.refused_at = actor.refused, now
        track.samples.append((now, actor.env_steps))
        while len(track.samples) > 2 and now - track.samples[1][0] >= _RATE_SECONDS:
            track.samples.pop(0)
        return track

    def _row(self, now: float, actor: Actor, version: int) -> dict[str, Any]:
        track = self._tracks[actor.actor_id]
        (then, before), (_, steps) = track.samples[0], track.samples[-1]
        lag = max(0, version - actor.parameter_version)
        return {
            "actor": actor.actor_id,
            "host": actor.host,
            "task": actor.task,
            "environments": actor.environments or self._environments,
            "version": actor.parameter_version,
            "lag": lag,
            "steps": actor.env_steps,
            "steps_per_second": (steps - before) / (now - then) if now > then else None,
            "seen_seconds_ago": round(max(0.0, now - actor.last_seen), 1),
            "reconnects": actor.joins - 1,
            "rejects": actor.refused,
            "state": self._state(now, actor, track, lag),
        }

    def _state(self, now: float, actor: Actor, track: _Track, lag: int) -> str:
        if actor.departed:
            return "left"
        if not actor.waiting and now - actor.last_seen > actor.silent_after(_SILENT_SECONDS):
            return "silent"
        if now - track.refused_at <= _REFUSED_SECONDS:
            return "refused"
        return "late" if actor.parameter_version and lag >= self._late else "ok"

    @staticmethod
    def _mark_slow(rows: Sequence[dict[str, Any]]) -> None:
        """Marks those that are much slower than most of their task."""
        for task in {row["task"] for row in rows}:
            well = [row for row in rows if row["task"] == task and row["state"] == "ok" and row["steps_per_second"] is not None]
            if len(well) < _FEWEST_TO_COMPARE:
                continue
            least = _SLOW_SHARE * statistics.median(row["steps_per_second"] for row in well)
            for row in well:
                if row["steps_per_second"] < least:
                    row["state"] = "slow"
