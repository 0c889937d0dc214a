"""The training loop: takes batches, steps, publishes, logs and checkpoints, until there is a reason to end.

Several learners run it side by side. Before each step they meet and decide alike what comes next (`learner_server.rounds`); rank 0
alone writes, what the others have to tell included.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from impala.errors import Diverged, ImpalaError
from impala.replay import TrajectoryReplay
from impala.unroll import Unroll, concatenate, largest_float
from learner_server.actor_registry import ActorRegistry, merge_registries
from learner_server.balance import Balance, Door
from learner_server.checkpoint_keeper import CheckpointKeeper
from learner_server.config import LearnerConfig
from learner_server.disk_failures import DiskFailures
from learner_server.episodes import EpisodeLog
from learner_server.group import Group
from learner_server.histograms import LearnerHistograms
from learner_server.learner import Learner
from learner_server.lockstep import Lockstep
from learner_server.metrics import ActorTimeShares, IntervalStatistics, MetricsWriter, Rate, actor_shares, merge_intervals
from learner_server.parameter_store import ParameterStore
from learner_server.recorder import Recorder
from learner_server.resume import VERSIONS_BETWEEN_LINES, StartingPoint
from learner_server.rounds import End, Round, Rounds, Standing
from learner_server.transfer import DeviceBatch
from learner_server.unroll_queue import StepAccount, UnrollQueue
from learner_server.verdict import VerdictWindow
from run_directory.checkpoint import Checkpoint
from run_directory.layout import RunDirectory

log = logging.getLogger(__name__)

# One batch with an infinity in it may happen; this many say that the weights themselves are lost.
_MOST_SKIPPED_IN_A_ROW = 100
# Beyond this an unroll's own numbers may overflow the squares of float32, whatever the weights; an update that one of them spoils
# says nothing of the weights, and no actor ends the run with it.
_LARGEST_SANE = 1e6

# A task none of whose actors has called for this long is not waited for: longer than any unroll takes to collect.
_TASK_SILENCE_SECONDS = 30.0

# How long the loop waits for a batch before it looks whether to log, to checkpoint or to end.
_PATIENCE_SECONDS = 0.1


class Training:
    """Runs the learner's loop on the thread that calls `run`, the only one that touches the optimiser.

    Args:
        directory, writer: where rank 0 keeps the run; None for the others.
        start: where the run stands.
        replay: where part of each batch comes from; None for none.
        refused: returns the counts of refused messages, by status and field.
        traffic: returns, by `bytes_received` and `bytes_sent`, what actors have sent and been sent so far.
        ingest_seconds: returns how long the thread that takes messages in has been at work so far.
        actor_times: where what actors spend their time on is gathered.
        show: called with each log interval's figures.
        look_after_actors: called once a log interval; what it raises of ours ends the run as FAILED.
        group: the learners that train as one.
        idle: an `idle_unroll`, to take part in steps for which this rank has no batch.
        door: returns where this rank is called.
        balance: learns what all ranks have.
        lockstep: is told of every batch that was trained on; every actor is then waited for, however long it takes.
        recorder: is told where unrolls are; it follows them with what the queue and the learner tell it besides.
        histograms: where lags, ratios and the times of stages are counted.
    """

    def __init__(
        self,
        *,
        config: LearnerConfig,
        directory: RunDirectory | None,
        learner: Learner,
        queue: UnrollQueue,
        store: ParameterStore,
        actors: ActorRegistry,
        episodes: EpisodeLog,
        writer: MetricsWriter | None,
        start: StartingPoint,
        replay: TrajectoryReplay | None,
        refused: Callable[[], dict[str, int]],
        traffic: Callable[[], dict[str, int]],
        actor_times: ActorTimeShares,
        show: Callable[[dict[str, Any]], None],
        look_after_actors: Callable[[], None],
        ingest_seconds: Callable[[], float] = float,
        group: Group | None = None,
        idle: Unroll[np.ndarray] | None = None,
        door: Callable[[int], Door] | None = None,
        balance: Balance | None = None,
        lockstep: Lockstep | None = None,
        recorder: Recorder | None = None,
        histograms: LearnerHistograms | None = None,
    ) -> None:
        self._config = config
        self._learner = learner
        self._queue = queue
        self._store = store
        self._actors = actors
        self._episodes = episodes
        self._writer = writer
        self._failures = writer.failures if writer is not None else DiskFailures()
        self._keeper = None if directory is None else _keeper(config, directory, start)
        self._start = start
        self._replay = replay
        self._refused = refused
        self._traffic = traffic
        self._actor_times = actor_times
        self._show = show
        self._look_after_actors = look_after_actors
        self._group = group or Group()
        self._idle = idle
        self._door = door or (lambda actors: Door(host="", port=0, local_port=0, machine=0, actors=actors))
        self._balance = balance or Balance()
        self._lockstep = lockstep
        self._recorder = recorder
        self._histograms = histograms or LearnerHistograms()
        self._rounds = Rounds(self._group.place.size)
        # Why the run fails, if it does.
        self.failure: ImpalaError | None = None
        # Of all ranks; what this rank's queue counts is its own.
        self._env_steps = start.steps_trained
        self._interval = IntervalStatistics(ingest_seconds)
        self._rate = Rate()
        self._verdict = VerdictWindow()
        # A batch that was taken from the queue and not yet trained on.
        self._fetched: tuple[Unroll[np.ndarray], DeviceBatch] | None = None
        # Where stop_at_return was reached, while it remains to be seen whether it holds.
        self._settle_from = _settle_from(start)
        self._skipped_in_a_row = 0
        self._warned_of_values = False
        self._logged_version = learner.version
        self._saved_version = None if start.checkpoint is None else start.checkpoint.version
        self._next_log = time.monotonic() + config.log_seconds

    def run(self, stop: threading.Event) -> End:
        """Trains until solved, out of steps, or told to stop; returns which."""
        # At once, so that a learner that is killed in its first minute finds its run again. Where there is a checkpoint it does so
        # without another, and a learner that dies at every start must not put copies of one in the place of all that came before.
        if self._saved_version is None:
            self.save()
        # So that the last line is no longer that of an orderly end when new versions are published.
        self._log()
        while True:
            if self._recorder is not None:
                self._recorder.tick()
            end = self._end(stop)
            waited_from = time.monotonic()
            if end is None and self._fetched is None:
                # Those whom nobody waits for must not have everybody wait.
                passed_over = self._rounds.passes_over(self._group.place.rank)
                self._fetch(0.0 if passed_over else _PATIENCE_SECONDS)
            agreed = self._meet(end)
            waited = time.monotonic() - waited_from
            self._interval.add_wait(waited)
            self._histograms.add_wait(waited, over=agreed.step)
            if agreed.log:
                self._look_after()
                self._log()
            if agreed.save:
                self.save()
            if agreed.end is not None:
                return agreed.end
            if agreed.step:
                self._train(agreed.env_steps, agreed.rate_scale)

    def drain(self) -> None:
        """Trains on what was fetched, and on what the closed queues still hold."""
        saved = False
        while True:
            if self._fetched is None:
                rest = self._queue.take_rest(self._config.fresh_trajectories)
                if rest is not None:
                    self._upload(rest)
            everyone = self._group.exchange([float(self._fetched is not None), float(self._fetched_steps), self._rate_scale()])
            if not any(ready for ready, _, _ in everyone):
                return
            if not saved:
                # Whoever stops a process kills it when that takes long, and a batch of another width may first be compiled for.
                self.save()
                saved = True
            self._train(int(sum(steps for _, steps, _ in everyone)), everyone[0][2])

    def _meet(self, end: End | None) -> Round:
        """Returns what all ranks do now."""
        now = time.monotonic()
        # Before a step, so that a line is never so many versions behind that a restarted learner could use one again.
        logs = now >= self._next_log or self._learner.version - self._logged_version >= VERSIONS_BETWEEN_LINES - 1
        standing = Standing(
            now=now,
            ready=self._fetched is not None,
            env_steps=self._fetched_steps,
            end=end,
            rate_scale=self._rate_scale(),
            log=logs,
            # Weights whose updates fail may be lost, and would take the place of those that were well.
            save=self._keeper is not None and self._keeper.due and not self._skipped_in_a_row,
        )
        everyone = self._group.exchange(standing.numbers())
        return self._rounds.decide([Standing.of_numbers(numbers) for numbers in everyone])

    @property
    def _fetched_steps(self) -> int:
        return 0 if self._fetched is None else self._fetched[0].env_steps

    def finish(self, end: End) -> dict[str, Any]:
        """Writes the last line of metrics and the last checkpoint, and returns the former's figures, the same on all ranks.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        if self._fetched is not None:
            self._fetched = None
            self._queue.drop_taken()
        if self._learner.version == self._saved_version:
            # A version is saved once. What was answered since, without an update, must not be forgotten: these weights get another.
            self._learner.version += 1
        figures = self._log(ended=end.value)
        self.save_or_raise()
        return figures

    def _end(self, stop: threading.Event) -> End | None:
        if self.failure is not None:
            return End.FAILED
        if stop.is_set():
            return End.STOPPED
        if self._group.place.rank:
            return None  # rank 0 has all returns, and decides
        target, mean_return = self._config.stop_at_return, self._episodes.mean_return_100
        reached = target is not None and mean_return is not None and mean_return >= target
        if reached and self._settle_from is None:
            self._settle_from = self._env_steps
        if self._settle_from is not None and self._env_steps >= self._settle_from + self._config.settle_steps:
            if reached:
                return End.SOLVED
            self._settle_from = None
        if self._env_steps < self._config.total_steps:
            return None
        # By now the learning rate has fallen to 0, as it does while a run settles.
        return End.SOLVED if reached else End.TOTAL_STEPS

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
        batch = self._with_replayed(fresh)
        if self._recorder is not None:
            self._recorder.batched()
        self._fetched = fresh, self._learner.transfer.upload(batch)
        if self._recorder is not None:
            self._recorder.uploaded()

    def _train(self, env_steps: int, rate_scale: float) -> None:
        """Takes a step on the batch that was fetched, or on nothing, together with the other ranks: on `env_steps` in all."""
        fresh, batch = self._fetched or self._without_batch()
        self._fetched = None
        if self._recorder is not None:
            self._recorder.begin_step(idle=fresh is None)
        began = time.monotonic()
        self._learner.begin_step(batch, self._env_steps, rate_scale=rate_scale, idle=fresh is None)
        if self._learner.transfer.overlaps and not self._queue.closed:
            self._fetch(0.0)
        report = self._learner.finish_step()
        if self._recorder is not None:
            self._recorder.end_step()
        self._histograms.stages["step"].add(time.monotonic() - began)
        # Replayed steps are not counted: they were when they were fresh.
        self._env_steps += env_steps
        if fresh is not None:
            self._queue.mark_trained()
            self._interval.add_step(report, fresh=fresh.environments)
            self._histograms.add_step(report, fresh=fresh.environments)
        if report.skipped:
            self._skip(fresh)
        else:
            self._skipped_in_a_row = 0
            began = time.monotonic()
            self._store.publish(self._learner.version, report.parameters)
            self._histograms.stages["publish"].add(time.monotonic() - began)
            if self._replay is not None and fresh is not None:
                # After the step, so that no new one is in its batch twice, and none comes again that made it fail.
                self._replay.add(fresh)
        if self._recorder is not None:
            self._recorder.published(None if report.skipped else self._learner.version)
        if self._lockstep is not None:
            self._lockstep.note_trained()

    def _without_batch(self) -> tuple[None, DeviceBatch]:
        assert self._idle is not None, "a learner by itself takes no step without a batch"
        return None, self._learner.transfer.upload(self._idle)

    def _with_replayed(self, fresh: Unroll[np.ndarray]) -> Unroll[np.ndarray]:
        """Returns a batch of fresh trajectories and, once there are any, of earlier ones."""
        count = self._config.batch_size - self._config.fresh_trajectories
        return concatenate([fresh, self._replay.sample(count)]) if self._replay and count else fresh

    def _skip(self, fresh: Unroll[np.ndarray] | None) -> None:
        sane = torch.tensor(fresh is None or largest_float(fresh) <= _LARGEST_SANE, device=self._learner.device)
        with self._group.meeting():
            spoilt = not self._group.all_true(sane)
        if spoilt:
            if not self._warned_of_values:
                log.warning("update skipped: not finite, of unrolls that hold values beyond %g", _LARGEST_SANE)
            self._warned_of_values = True
            return
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == 1:
            log.warning("update skipped: loss or gradient is not finite")
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise Diverged(f"{self._skipped_in_a_row} updates in a row were not finite; try a smaller learning rate")

    def _look_after(self) -> None:
        try:
            self._look_after_actors()
        except ImpalaError as error:
            self.failure = error
        except OSError as error:
            self.failure = ImpalaError(f"local actors cannot be started again: {error}")
        if self._lockstep is None:
            self._queue.serve(self._actors.tasks_within(_TASK_SILENCE_SECONDS))

    def _log(self, ended: str | None = None) -> dict[str, Any]:
        self._next_log = time.monotonic() + self._config.log_seconds
        self._logged_version = self._learner.version
        self._histograms.start_interval()
        ranks = self._group.collect(self._report())
        self._balance.update([Door(**report["door"]) for report in ranks])
        others = [report["actors_by_task"] for rank, report in enumerate(ranks) if rank != self._group.place.rank]
        self._actors.note_elsewhere([sum(counts) for counts in zip(*others, strict=True)])
        for report in ranks[1:]:
            self._episodes.add_news(report["episodes"])
        figures = self._figures(ranks)
        verdict = self._verdict.update(time.monotonic(), figures)
        figures.update(limit=verdict.limit.value, limit_evidence=verdict.evidence)
        if ended is not None:
            figures["ended"] = ended
        if self._writer is not None:
            self._writer.write(figures)
        with self._failures.survived("console"):
            self._show(figures)
        return figures

    def _report(self) -> dict[str, Any]:
        """Returns what this rank has to tell the others, as JSON values."""
        return {
            "account": asdict(self._queue.account()),
            "interval": self._interval.take(),
            "episodes": self._episodes.take(),
            "door": self._door(self._actors.taking_part()).to_json(),
            "actors_by_task": self._actors.by_task(),
            "refused": self._refused(),
            **self._traffic(),
            "actor_times": self._actor_times.take(),
            "parameter_encodings": self._store.encodings,
        }

    def _figures(self, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        account = StepAccount.total([report["account"] for report in ranks])
        refused: Counter[str] = Counter()
        for report in ranks:
            refused.update(report["refused"])
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
            **merge_intervals([report["interval"] for report in ranks]),
            "steps_received": account.received,
            "steps_trained": account.trained,
            "steps_dropped": sum(account.dropped.values()),
            "steps_waiting": account.waiting,
            "dropped_by_rule": dict(account.dropped),
            "steps_lost": self._start.steps_lost,
            "queued_trajectories": account.queued_trajectories,
            "actors": sum(report["door"]["actors"] for report in ranks),
            "actors_by_rank": [report["door"]["actors"] for report in ranks],
            "refused": dict(refused),
            **actor_shares([report["actor_times"] for report in ranks]),
            "bytes_received": sum(report["bytes_received"] for report in ranks),
            "bytes_sent": sum(report["bytes_sent"] for report in ranks),
            "parameter_encodings": sum(report["parameter_encodings"] for report in ranks),
            "checkpoint_age_seconds": None if self._keeper is None else self._keeper.age_seconds,
            "disk_failures": self._failures.counts,
        }

    def save(self) -> None:
        """Writes a checkpoint of this moment; where that fails, it is said in the log, and the earlier ones stand."""
        with self._failures.survived("checkpoint"):
            self.save_or_raise()

    def save_or_raise(self) -> None:
        """Writes a checkpoint of this moment, of all ranks.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
            Diverged: ranks have different weights.
        """
        ranks = self._group.collect(self._state())
        self._compare([report["weights"] for report in ranks])
        if self._keeper is None:
            self._saved_version = self._learner.version
            return
        account = StepAccount.total([report["account"] for report in ranks])
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
                "settle_from": self._settle_from,
                "actors": merge_registries([report["actors"] for report in ranks]),
                "replay_random_states": [report["replay_random_state"] for report in ranks],
            },
        )
        began = time.monotonic()
        try:
            self._keeper.write(checkpoint)
        finally:
            self._histograms.stages["checkpoint"].add(time.monotonic() - began)
        self._saved_version = checkpoint.version

    def _state(self) -> dict[str, Any]:
        """Returns what this rank adds to a checkpoint, as JSON values."""
        weights = [tensor.detach().double().sum() for tensor in self._learner.network.state_dict().values()]
        # At one instant: an unroll that the account says was trained on is one that the ledgers know.
        account, actors = self._queue.account_with(self._actors.to_json)
        return {
            "account": asdict(account),
            "actors": actors,
            "replay_random_state": None if self._replay is None else self._replay.random_state,
            "weights": repr(float(torch.stack(weights).sum())),
        }

    def _compare(self, weights: Sequence[str]) -> None:
        # Every rank computes each version for itself, from the same gradients: bit for bit the same, unless machines differ.
        different = [rank for rank, total in enumerate(weights) if total != weights[0]]
        if different:
            raise Diverged(f"version {self._learner.version}: ranks {different} have other weights than rank 0")


def _keeper(config: LearnerConfig, directory: RunDirectory, start: StartingPoint) -> CheckpointKeeper:
    version = None if start.checkpoint is None else start.checkpoint.version
    folder, seconds, keep = directory.checkpoints, config.checkpoint_seconds, config.keep_checkpoints
    return CheckpointKeeper(folder, seconds=seconds, keep=keep, version=version)


def _settle_from(start: StartingPoint) -> int | None:
    """Returns where a run that was settling began to, so that as much of it lies before its weights as when they were saved."""
    if start.checkpoint is None:
        return None
    began: int | None = start.checkpoint.state.get("settle_from")
    # Steps that were trained on after the checkpoint count, and their weights, and what these played, are lost.
    return None if began is None else began + start.steps_trained - int(start.checkpoint.state["env_steps"])
