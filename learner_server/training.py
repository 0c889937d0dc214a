"""The training loop: takes batches, steps, publishes, logs and checkpoints, until there is a reason to end."""

import enum
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from impala.errors import CheckpointError, Diverged
from impala.replay import TrajectoryReplay
from impala.unroll import Unroll, concatenate
from learner_server.actor_registry import ACTOR_SILENCE_SECONDS, ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.episodes import EpisodeLog
from learner_server.learner import Learner
from learner_server.metrics import IntervalStatistics, MetricsWriter, Rate
from learner_server.parameter_store import ParameterStore
from learner_server.resume import VERSIONS_BETWEEN_LINES, StartingPoint
from learner_server.transfer import DeviceBatch
from learner_server.unroll_queue import UnrollQueue
from run_directory.checkpoint import Checkpoint, save_checkpoint
from run_directory.layout import RunDirectory

log = logging.getLogger(__name__)

# One batch with an infinity in it may happen; this many say that the weights themselves are lost.
_MOST_SKIPPED_IN_A_ROW = 100

# A task none of whose actors has called for this long is not waited for: longer than any unroll takes to collect.
_TASK_SILENCE_SECONDS = 30.0

# How long the loop waits for a batch before it looks whether to log, to checkpoint or to end.
_PATIENCE_SECONDS = 0.1


class End(enum.StrEnum):
    """Why a run, or this process's part of it, ended."""

    SOLVED = "solved"
    TOTAL_STEPS = "total_steps"
    STOPPED = "stopped"


class Training:
    """Runs the learner's loop on the thread that calls `run`, the only one that touches the optimiser.

    Args:
        start: where the run stands.
        replay: where part of each batch comes from; None for none.
        refused: returns the counts of refused messages, by status and field.
        show: called with each log interval's figures.
        look_after_actors: called once a log interval.
    """

    def __init__(
        self,
        *,
        config: LearnerConfig,
        directory: RunDirectory,
        learner: Learner,
        queue: UnrollQueue,
        store: ParameterStore,
        actors: ActorRegistry,
        episodes: EpisodeLog,
        writer: MetricsWriter,
        start: StartingPoint,
        replay: TrajectoryReplay | None,
        refused: Callable[[], dict[str, int]],
        show: Callable[[dict[str, Any]], None],
        look_after_actors: Callable[[], None],
    ) -> None:
        self._config = config
        self._directory = directory
        self._learner = learner
        self._queue = queue
        self._store = store
        self._actors = actors
        self._episodes = episodes
        self._writer = writer
        self._start = start
        self._replay = replay
        self._refused = refused
        self._show = show
        self._look_after_actors = look_after_actors
        self._env_steps = start.steps_trained
        self._interval = IntervalStatistics()
        self._rate = Rate()
        # A batch that was taken from the queue and not yet trained on.
        self._fetched: tuple[Unroll[np.ndarray], DeviceBatch] | None = None
        # Where stop_at_return was reached, while it remains to be seen whether it holds.
        self._settle_from: int | None = None
        self._skipped_in_a_row = 0
        self._logged_version = learner.version
        self._next_log = time.monotonic() + config.log_seconds
        self._next_checkpoint = time.monotonic() + config.checkpoint_seconds

    def run(self, stop: threading.Event) -> End:
        """Trains until solved, out of steps, or told to stop; returns which."""
        # At once, so that a learner that is killed in its first minute finds its run again, and so that the last line is no
        # longer that of an orderly end when new versions are published.
        self._save()
        self._log()
        while True:
            end = self._end(stop)
            if end is not None:
                return end
            if self._fetched is None:
                waited_from = time.monotonic()
                self._fetch(_PATIENCE_SECONDS)
                self._interval.add_wait(time.monotonic() - waited_from)
            self._train()
            self._keep_records()

    def drain(self) -> None:
        """Trains on what was fetched, and on what the closed queue still holds."""
        self._train()
        while (batch := self._queue.take_rest(self._config.fresh_trajectories)) is not None:
            self._upload(batch)
            self._train()

    def finish(self, end: End) -> dict[str, Any]:
        """Writes the last line of metrics and the last checkpoint, and returns the former's figures.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        if self._fetched is not None:
            self._fetched = None
            self._queue.drop_taken()
        figures = self._log(ended=end.value)
        self.save_or_raise()
        return figures

    def _end(self, stop: threading.Event) -> End | None:
        if stop.is_set():
            return End.STOPPED
        target, mean_return = self._config.stop_at_return, self._episodes.mean_return_100
        reached = target is not None and mean_return is not None and mean_return >= target
        if reached and self._settle_from is None:
            self._settle_from = self._env_steps
        if self._settle_from is not None and self._env_steps >= self._settle_from + self._config.settle_steps:
            if reached:
                return End.SOLVED
            self._settle_from = None
        return End.TOTAL_STEPS if self._env_steps >= self._config.total_steps else None

    def _rate_scale(self) -> float:
        """Falls from 1 to 0 while the run settles."""
        if self._settle_from is None:
            return 1.0
        return max(0.0, 1.0 - (self._env_steps - self._settle_from) / max(1, self._config.settle_steps))

    def _fetch(self, timeout_seconds: float) -> None:
        """Takes a batch from the queue, if there is one in time, and starts its way to the device."""
        fresh = self._queue.take_batch(self._config.fresh_trajectories, timeout_seconds)
        if fresh is not None:
            self._upload(fresh)

    def _upload(self, fresh: Unroll[np.ndarray]) -> None:
        self._fetched = fresh, self._learner.transfer.upload(self._with_replayed(fresh))

    def _train(self) -> None:
        """Takes a step on the batch that was fetched, if there is one."""
        if self._fetched is None:
            return
        (fresh, batch), self._fetched = self._fetched, None
        self._learner.begin_step(batch, self._env_steps, rate_scale=self._rate_scale())
        if self._learner.transfer.overlaps and not self._queue.closed:
            self._fetch(0.0)
        report = self._learner.finish_step()
        # Replayed steps are not counted: they were when they were fresh.
        self._env_steps += fresh.env_steps
        self._queue.mark_trained()
        self._interval.add_step(report)
        if report.skipped:
            self._skip()
        else:
            self._skipped_in_a_row = 0
            self._store.publish(self._learner.version, report.parameters)
            if self._replay is not None:
                # After the step, so that no new one is in its batch twice, and none comes again that made it fail.
                self._replay.add(fresh)

    def _with_replayed(self, fresh: Unroll[np.ndarray]) -> Unroll[np.ndarray]:
        """Returns a batch of fresh trajectories and, once there are any, of earlier ones."""
        count = self._config.batch_size - self._config.fresh_trajectories
        return concatenate([fresh, self._replay.sample(count)]) if self._replay and count else fresh

    def _skip(self) -> None:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == 1:
            log.warning("update skipped: loss or gradient is not finite")
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise Diverged(f"{self._skipped_in_a_row} updates in a row were not finite; try a smaller learning rate")

    def _keep_records(self) -> None:
        now = time.monotonic()
        if now >= self._next_log or self._learner.version - self._logged_version >= VERSIONS_BETWEEN_LINES - 1:
            self._next_log = now + self._config.log_seconds
            self._log()
            self._look_after_actors()
            self._queue.serve({actor.task for actor in self._actors.seen_within(_TASK_SILENCE_SECONDS)})
        if now >= self._next_checkpoint:
            self._next_checkpoint = now + self._config.checkpoint_seconds
            self._save()

    def _log(self, ended: str | None = None) -> dict[str, Any]:
        figures = self._figures()
        if ended is not None:
            figures["ended"] = ended
        self._logged_version = self._learner.version
        self._writer.write(figures)
        self._show(figures)
        return figures

    def _figures(self) -> dict[str, Any]:
        account = self._queue.account()
        return {
            "seconds": round(self._episodes.seconds, 3),
            "env_steps": account.trained,
            "learner_updates": self._learner.updates,
            "mean_return_100": self._episodes.mean_return_100,
            "episodes": sum(self._episodes.counts),
            "trained_by_task": account.trained_by_task,
            "episodes_by_task": self._episodes.counts,
            "mean_return_100_by_task": self._episodes.mean_returns_100(),
            "steps_per_second": self._rate.update(time.monotonic(), account.trained),
            "parameter_version": self._learner.version,
            "skipped_updates": self._learner.skipped_updates,
            **self._interval.take(),
            "steps_received": account.received,
            "steps_trained": account.trained,
            "steps_dropped": sum(account.dropped.values()),
            "steps_waiting": account.waiting,
            "dropped_by_rule": dict(account.dropped),
            "steps_lost": self._start.steps_lost,
            "queued_trajectories": account.queued_trajectories,
            "actors": len(self._actors.seen_within(ACTOR_SILENCE_SECONDS)),
            "refused": self._refused(),
            "parameter_encodings": self._store.encodings,
        }

    def _save(self) -> None:
        try:
            self.save_or_raise()
        except CheckpointError as error:
            # The last whole checkpoint is still there, and the next attempt is a minute away.
            log.error("%s", error)

    def save_or_raise(self) -> None:
        """Writes a checkpoint of this moment.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        account = self._queue.account()
        random = {"cpu": torch.get_rng_state()}
        if self._learner.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self._learner.device)
        checkpoint = Checkpoint(
            version=self._learner.version,
            parameters={name: tensor.detach().cpu() for name, tensor in self._learner.network.state_dict().items()},
            optimiser=self._learner.optimiser_tensors(),
            random=random,
            state={
                "run_id": self._start.run_id,
                "env_steps": account.trained,
                "learner_updates": self._learner.updates,
                "skipped_updates": self._learner.skipped_updates,
                "steps_received": account.received,
                "dropped_by_rule": dict(account.dropped),
                "steps_lost": self._start.steps_lost,
                "trained_by_task": account.trained_by_task,
                "episodes_by_task": self._episodes.counts,
                "recent_returns": self._episodes.recent_returns,
                "seconds": self._episodes.seconds,
                "actors": self._actors.to_json(),
                "replay_random_state": None if self._replay is None else self._replay.random_state,
            },
        )
        try:
            save_checkpoint(self._directory.checkpoints, checkpoint, keep=self._config.keep_checkpoints)
        except OSError as error:
            raise CheckpointError(f"checkpoint: cannot write to {self._directory.checkpoints}: {error.strerror}") from error
