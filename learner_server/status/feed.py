"""What the status page shows: the newest line of metrics, how it came to be, the actors, and what has happened."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from impala.histogram import Histogram
from learner_server.actor_registry import ActorRegistry
from learner_server.metrics import Rate
from learner_server.status.actor_table import ActorTable
from learner_server.status.distributions import Distributions
from learner_server.status.event_log import EventLog
from learner_server.status.history import History
from learner_server.verdict import Limit, Verdict

# What is drawn over the whole run; `bytes_*_per_second` are made here.
CHARTS = (
    "mean_return_100",
    "steps_per_second",
    "policy_lag_mean",
    "log_rho_abs",
    "clipped_fraction",
    "effective_sample_size",
    "entropy",
    "baseline",
    "queue_fill",
    "learner_wait_fraction",
    "actor_wait_fraction",
    "bytes_received_per_second",
    "bytes_sent_per_second",
)
_SICK = {"silent": "has not called for %.0f s", "late": "acts on weights %d versions old", "slow": "is much slower than the others"}


class StatusFeed:
    """Takes in lines of metrics from the training thread, and is read by the status page's.

    Args:
        run: what does not change, as JSON values: shown as it is.
        queue_capacity: trajectories that the queue holds.
        max_policy_lag, environments: see `ActorTable`.
        actors: the run's.
        histograms: whose last minute is shown, by name.
    """

    def __init__(
        self,
        *,
        run: Mapping[str, Any],
        queue_capacity: int,
        max_policy_lag: int,
        environments: int,
        actors: ActorRegistry,
        histograms: Mapping[str, Histogram],
    ) -> None:
        self.events = EventLog()
        self._run = dict(run)
        self._capacity = queue_capacity
        self._actors = actors
        self._lock = threading.Lock()
        self._figures: dict[str, Any] = {}
        self._history = History(CHARTS)
        self._table = ActorTable(max_policy_lag, environments)
        self._rows: list[dict[str, Any]] = []
        self._distributions = Distributions(histograms)
        self._spread: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._traffic = {name: Rate(10.0) for name in ("bytes_received", "bytes_sent")}
        logging.getLogger("learner_server").addHandler(self.events)

    def update(self, figures: Mapping[str, Any]) -> None:
        """Takes a line of metrics."""
        now = time.monotonic()
        rates = {f"{name}_per_second": rate.update(now, figures[name]) for name, rate in self._traffic.items()}
        shown = {**figures, **rates, "queue_fill": figures["queued_trajectories"] / self._capacity}
        self._note_checkpoint(figures)
        rows = self._table.rows(now, self._actors.snapshot(), figures["parameter_version"])
        self._note_changes(rows)
        spread = self._distributions.update(now)
        with self._lock:
            self._figures, self._rows, self._spread = shown, rows, spread
            self._history.add(shown)

    def status(self) -> dict[str, Any]:
        """Returns all but the history, as JSON values."""
        with self._lock:
            figures, rows, spread = self._figures, self._rows, self._spread
        return {
            "run": self._run,
            "figures": figures,
            "verdict": _verdict(figures),
            "distributions": spread,
            "actors": rows,
            "events": self.events.newest(),
        }

    def history(self) -> dict[str, Any]:
        """Returns each chart's points, as JSON values."""
        with self._lock:
            return self._history.columns()

    def close(self) -> None:
        """Hears no more of what is logged."""
        logging.getLogger("learner_server").removeHandler(self.events)

    def _note_checkpoint(self, figures: Mapping[str, Any]) -> None:
        before, age = self._figures.get("checkpoint_age_seconds"), figures["checkpoint_age_seconds"]
        # Not with the first figures, whose checkpoint is that of an earlier process or of the start.
        if self._figures and age is not None and (before is None or age < before):
            self.events.add(f"checkpoint written, of about version {figures['parameter_version']}")

    def _note_changes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds an event for each actor that fell sick, left or recovered since the last line."""
        for row in rows:
            name, state = row["actor"], row["state"]
            before = self._states.get(name, "ok")
            if state == before:
                continue
            if state in _SICK:
                value = {"silent": row["seen_seconds_ago"], "late": row["lag"]}.get(state)
                said = _SICK[state] % value if value is not None else _SICK[state]
                self.events.add(f"actor {name} {said}", level="warning")
            elif state == "left":
                self.events.add(f"actor {name} left")
            elif before in _SICK:
                self.events.add(f"actor {name} is well again")
        self._states = {row["actor"]: row["state"] for row in rows}


def _verdict(figures: Mapping[str, Any]) -> dict[str, str]:
    verdict = Verdict(Limit(figures.get("limit", Limit.NOTHING_YET.value)), figures.get("limit_evidence", "no line of metrics yet"))
    return {"limit": verdict.limit.value, "evidence": verdict.evidence, "advice": verdict.advice}
