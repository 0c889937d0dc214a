"""A learner process without server and threads, whose weights are the list of the columns that they were trained on.

Put together as `learner_server.run` does, of the real parts; only learning is played, so that whatever survives a restart says what
it has learnt.
"""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import torch

from impala.losses import ImpalaLoss
from impala.unroll import Unroll
from impala.wire import Assignment
from learner_server.actor_registry import ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.episodes import EpisodeLog
from learner_server.learner import StepReport
from learner_server.metrics import ActorTimeShares, MetricsWriter
from learner_server.parameter_store import ParameterStore
from learner_server.resume import find_starting_point
from learner_server.servicer import LearnerServicer
from learner_server.training import Training
from learner_server.transfer import HostTransfer
from learner_server.unroll_queue import UnrollQueue
from run_directory.counters import CounterFile
from run_directory.layout import RunDirectory
from tests.samples import AGENT, SPEC

LENGTH = 2  # T
PLAYED_SPEC = replace(SPEC, unroll_length=LENGTH)
NO_LOSS = ImpalaLoss(**{each.name: torch.zeros(()) for each in fields(ImpalaLoss)})


class Aborted(Exception):
    """A call ended with a status."""


class Context:
    """What gRPC hands to a method with each call."""

    async def abort(self, status: grpc.StatusCode, details: str) -> None:
        raise Aborted(status.name)

    def peer(self) -> str:
        return "nowhere"


class NoEvents:
    """TensorBoard's writer, which writes nothing."""

    def __init__(self, folder: str) -> None:
        pass

    def add_scalar(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


class PlayedLearner:
    """A learner as training sees it, whose weights are the list of the columns that they learnt from."""

    def __init__(self, version: int, learnt: list[int], *, overlaps: bool) -> None:
        self.version, self.learnt = version, learnt
        self.updates = self.skipped_updates = 0
        self.transfer = HostTransfer()
        self.transfer.overlaps = overlaps
        self.device = torch.device("cpu")
        self.network = SimpleNamespace(state_dict=self.weights)
        self.skips_next = False
        self.batch: list[int] = []

    def weights(self) -> dict[str, torch.Tensor]:
        return {"learnt": torch.tensor(self.learnt, dtype=torch.int64)}

    def optimiser_tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def begin_step(self, batch: Any, env_steps: int, **_: Any) -> None:
        self.batch = marks_of(batch.unroll)

    def finish_step(self) -> StepReport:
        skipped, self.skips_next = self.skips_next, False
        if skipped:
            self.skipped_updates += 1
        else:
            self.learnt = self.learnt + self.batch
            self.updates += 1
            self.version += 1
        return StepReport(
            loss=NO_LOSS, grad_norm=0.0, learning_rate=0.0, policy_lags=np.zeros(1), skipped=skipped, parameters=self.weights()
        )


def marks_of(unroll: Unroll[Any]) -> list[int]:
    """Returns what tells its columns apart."""
    return [int(mark) for mark in unroll.rewards[0]]


class Process:
    """A learner process. Its parts are public, for the test to turn them."""

    def __init__(self, config: LearnerConfig, path: Path, *, max_line: int, overlaps: bool) -> None:
        self.directory, tasks = RunDirectory(path), len(config.env)
        self.start = start = find_starting_point(self.directory, tasks)
        learnt = start.checkpoint.parameters["learnt"].tolist() if start.checkpoint else []
        self.learner = PlayedLearner(start.version, learnt, overlaps=overlaps)
        self.learner.updates, self.learner.skipped_updates = start.learner_updates, start.skipped_updates
        self.counters = CounterFile(self.directory.counters)
        self.queue = UnrollQueue(
            capacity=config.queue_batches * config.fresh_trajectories,
            max_line=max_line,
            when_full=config.when_full,
            keep=self.counters.write,
            received=start.steps_received,
            trained=start.trained_by_task,
            dropped=start.steps_dropped,
        )
        self.store, self.actors = ParameterStore(), ActorRegistry(tasks)
        if start.checkpoint:
            self.actors.restore(start.checkpoint.state["actors"])
        episodes = EpisodeLog(counts=start.episodes, recent_returns=start.recent_returns, seconds=start.seconds)
        self.servicer = LearnerServicer(
            assign=lambda actor, environments: Assignment(
                run_id=start.run_id,
                spec_digest="digest",
                environment=AGENT.environments[0],
                task=actor.task,
                network=AGENT.network,
                unroll_spec=PLAYED_SPEC,
                environments=environments,
                seed=0,
                max_in_flight=2,
                max_on_the_way=0,
                compresses=False,
            ),
            spec=PLAYED_SPEC,
            spec_digest="digest",
            queue=self.queue,
            store=self.store,
            actors=self.actors,
            max_policy_lag=config.max_policy_lag,
            on_unroll=episodes.add,
        )
        self.writer = MetricsWriter(self.directory.metrics, self.directory.tensorboard)
        learner: Any = self.learner
        self.training = Training(
            config=config,
            directory=self.directory,
            learner=learner,
            queue=self.queue,
            store=self.store,
            actors=self.actors,
            episodes=episodes,
            writer=self.writer,
            start=start,
            replay=None,
            refused=dict,
            traffic=lambda: {"bytes_received": 0, "bytes_sent": 0},
            actor_times=ActorTimeShares(),
            show=lambda _: None,
            look_after_actors=lambda: None,
        )
        self.store.publish(self.learner.version, self.learner.weights())
        # Whether the training loop has begun, with a checkpoint and a line of metrics.
        self.begun = False

    @property
    def fetched(self) -> list[int] | None:
        """The marks of the batch that was taken and not yet trained on."""
        fetched = self.training._fetched
        return None if fetched is None else marks_of(fetched[0])
