"""What a run measures: gathered step by step, written once a log interval to `metrics.jsonl` and TensorBoard."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from impala.losses import ImpalaLoss
from impala.processor import starved_seconds
from impala.unroll import ActorTimes
from learner_server.disk_failures import DiskFailures
from learner_server.events import EventWriter
from learner_server.learner import StepReport
from learner_server.wandb_run import WandbRun, WandbWriter
from run_directory.journal import JournalWriter

log = logging.getLogger(__name__)

# All but what is there for each row of the batch.
_LOSS_FIELDS = tuple(field.name for field in fields(ImpalaLoss) if field.name not in {"vs", "valid", "log_ratios"})
_MEANS = (*_LOSS_FIELDS, "grad_norm", "policy_lag_mean", "replayed_lag_mean")

# steps_per_second is over this window, so that one slow interval does not read as a slow run.
_RATE_WINDOW_SECONDS = 3.0


class IntervalStatistics:
    """Means over the learner steps of one log interval. Tensors are kept as they are and read once, when the interval ends.

    Of the thread that makes it, takes it and trains.

    Args:
        ingest_seconds: returns how long the thread that takes messages in has been at work so far.
    """

    def __init__(self, ingest_seconds: Callable[[], float] = float) -> None:
        self._ingest_seconds = ingest_seconds
        self._ingested = ingest_seconds()
        self._starved = starved_seconds()
        self._losses: list[torch.Tensor] = []
        self._grad_norms: list[float] = []
        self._lags: list[np.ndarray] = []
        self._replayed_lags: list[np.ndarray] = []
        self._learning_rate: float | None = None
        self._wait_seconds = 0.0
        self._started = time.monotonic()

    def add_step(self, report: StepReport, *, fresh: int | None = None) -> None:
        """Adds one learner step, on a batch whose trajectories but the first `fresh` were replayed; None: none was."""
        self._losses.append(torch.stack([getattr(report.loss, name).detach() for name in _LOSS_FIELDS]))
        self._grad_norms.append(report.grad_norm)
        self._lags.append(report.policy_lags[:fresh])
        if fresh is not None:
            self._replayed_lags.append(report.policy_lags[fresh:])
        self._learning_rate = report.learning_rate

    def add_wait(self, seconds: float) -> None:
        """Adds time that the training thread waited for a batch."""
        self._wait_seconds += seconds

    def take(self) -> dict[str, Any]:
        """Returns the interval's figures by name, None where there was no step, and starts the next interval."""
        figures: dict[str, Any] = dict.fromkeys((*_MEANS, "policy_lag_max"))
        if self._losses:
            means = torch.stack(self._losses).nanmean(dim=0).tolist()
            figures.update(zip(_LOSS_FIELDS, means, strict=True))
            lags, replayed = (np.concatenate(kept) if kept else np.empty(0) for kept in (self._lags, self._replayed_lags))
            figures.update(
                grad_norm=float(np.mean(self._grad_norms)),
                policy_lag_mean=float(lags.mean()),
                policy_lag_max=int(lags.max()),
                replayed_lag_mean=float(replayed.mean()) if len(replayed) else None,
            )
        elapsed = time.monotonic() - self._started
        figures["learning_rate"] = self._learning_rate
        parts = {
            "learner_wait_fraction": self._wait_seconds,
            "learner_starved_fraction": starved_seconds() - self._starved,
            "ingest_fraction": self._ingest_seconds() - self._ingested,
        }
        figures.update({name: min(1.0, seconds / elapsed) if elapsed else None for name, seconds in parts.items()})
        self.__init__(self._ingest_seconds)  # type: ignore[misc]
        return figures


class ActorTimeShares:
    """What actors spent their time on in a log interval. Added to by the event loop, taken by training."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = ActorTimes(total=0.0, environment=0.0, inference=0.0, waiting=0.0)

    def add(self, times: ActorTimes) -> None:
        """Adds the time that went into one unroll."""
        with self._lock:
            self._seconds = ActorTimes(**{name: seconds + getattr(times, name) for name, seconds in asdict(self._seconds).items()})

    def take(self) -> dict[str, float]:
        """Returns the interval's seconds by the fields of `ActorTimes`, of all actors together, and starts the next interval."""
        with self._lock:
            seconds = asdict(self._seconds)
            self._seconds = ActorTimes(**dict.fromkeys(seconds, 0.0))
        return seconds


# Figure by field of `ActorTimes`. Of the first three and the last none is above 1; calls may overlap, and so be longer in all.
_SHARES = {
    "actor_environment_fraction": "environment",
    "actor_inference_fraction": "inference",
    "actor_wait_fraction": "waiting",
    "actor_line_fraction": "line",
    "actor_sending_fraction": "sending",
    "actor_fetching_fraction": "fetching",
    "actor_starved_fraction": "starved",
}


def actor_shares(parts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Returns actors' figures of one interval of several learners, each what `ActorTimeShares.take` returned there.

    None where no actor said anything.
    """
    total = sum(part["total"] for part in parts)
    return {figure: sum(part[name] for part in parts) / total if total else None for figure, name in _SHARES.items()}


def merge_intervals(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the figures of one interval of several learners, each what `IntervalStatistics.take` returned there.

    Means are over the learners that took steps; the share of time that was waited is the mean over all.
    """
    figures = dict(parts[0])
    for name in (*_MEANS, "learner_wait_fraction", "learner_starved_fraction", "ingest_fraction"):
        figures[name] = _mean([part[name] for part in parts])
    figures["learning_rate"] = next((part["learning_rate"] for part in parts if part["learning_rate"] is not None), None)
    figures["policy_lag_max"] = max((part["policy_lag_max"] for part in parts if part["policy_lag_max"] is not None), default=None)
    return figures


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


class Rate:
    """How fast a counter grows, over the last few seconds."""

    def __init__(self, window_seconds: float = _RATE_WINDOW_SECONDS) -> None:
        self._window = window_seconds
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, count: int) -> float:
        """Returns the counter's growth a second, having seen `count` at `now` (any clock's seconds); 0 at the first call."""
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[0][0] > self._window:
            self._samples.popleft()
        (then, before) = self._samples[0]
        return (count - before) / (now - then) if now > then else 0.0


class MetricsWriter:
    """Appends to `metrics.jsonl`, to TensorBoard event files and, where it is asked to, to a run of Weights & Biases.

    Numbers that are not finite are written as null.

    A disk that fails stops nobody: lines are kept aside until it takes them, TensorBoard goes without, and `failures` counts.

    Args:
        metrics, tensorboard: the file, and the folder of event files.
        wandb: the run; None for none.
    """

    def __init__(self, metrics: Path, tensorboard: Path, *, wandb: WandbRun | None = None) -> None:
        self.failures = DiskFailures()
        self._journal = JournalWriter(metrics)
        self._events = EventWriter(tensorboard)
        self._wandb = None if wandb is None else WandbWriter(wandb, self.failures)

    def write(self, figures: dict[str, Any]) -> None:
        """Writes one object; scalars go to TensorBoard, and to Weights & Biases, under the same names, by `env_steps`."""
        clean = {name: _finite_or_none(value) for name, value in figures.items()}
        with self.failures.survived("metrics"):
            self._journal.append(clean)
        with self.failures.survived("tensorboard"):
            self._events.write(_scalars(clean), clean["env_steps"])
        if self._wandb is not None:
            with self.failures.survived("wandb"):
                self._wandb.write(_scalars(clean), clean["env_steps"])

    def close(self) -> None:
        """Tries once more to write what was kept aside, and waits a while for what is being sent."""
        with self.failures.survived("metrics"):
            self._journal.retry()
        if self._journal.aside:
            log.error("metrics: the last %d lines could not be written", self._journal.aside)
        if self._wandb is not None:
            self._wandb.close()


def _scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers among the figures by name, those that are lists by task as one for each task."""
    named: dict[str, Any] = {}
    for name, value in figures.items():
        if name.endswith("_by_task"):
            named.update({f"{name}/{task}": entry for task, entry in enumerate(value)})
        elif name != "env_steps":
            named[name] = value
    return {name: value for name, value in named.items() if isinstance(value, int | float)}


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
