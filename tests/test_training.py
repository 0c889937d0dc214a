"""The training loop: what batches are made of, what counts as trained, and which tasks are waited for."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from impala.config import LossConfig, OptimiserConfig
from impala.networks import build_network
from impala.replay import TrajectoryReplay
from impala.unroll import ActorTimes, idle_unroll
from learner_server.actor_registry import ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.episodes import EpisodeLog
from learner_server.group import Group
from learner_server.histograms import LearnerHistograms
from learner_server.learner import Learner
from learner_server.lockstep import Lockstep
from learner_server.metrics import ActorTimeShares, MetricsWriter
from learner_server.parameter_store import ParameterStore
from learner_server.resume import StartingPoint, find_starting_point
from learner_server.training import End, Training
from learner_server.transfer import DeviceBatch, Transfer
from learner_server.unroll_queue import UnrollQueue
from run_directory.layout import RunDirectory
from tests.samples import AGENT, SPEC, make_unroll

STEPS = 5  # of one column


class NotingLearner(Learner):
    """A learner that notes what it was given."""

    def __init__(self, transfer: Transfer | None, group: Group | None, version: int = 1) -> None:
        torch.manual_seed(0)
        network = build_network(AGENT.network, SPEC.environment)
        super().__init__(
            network, LossConfig(), OptimiserConfig(), total_steps=1000, transfer=transfer, group=group, version=version
        )
        self.batches: list[list[int]] = []
        self.env_steps: list[int] = []

    def begin_step(self, batch: DeviceBatch, env_steps: int, *, rate_scale: float = 1.0, idle: bool = False) -> None:
        self.batches.append([] if idle else batch.parameter_version.tolist())
        self.env_steps.append(env_steps)
        super().begin_step(batch, env_steps, rate_scale=rate_scale, idle=idle)

    def columns(self) -> list[list[int]]:
        """Returns, batch by batch, which columns it had, by the versions that tell them apart."""
        return self.batches


@dataclass
class Run:
    """What is left of a run."""

    end: End
    learner: NotingLearner
    queue: UnrollQueue
    figures: list[dict[str, Any]]


def train(
    path: Path,
    columns: dict[int, int],
    *,
    actors: ActorRegistry | None = None,
    tasks: int = 1,
    drain: bool = False,
    spoilt: int = 0,
    spoilt_to: int = 0,
    transfer: Transfer | None = None,
    stop_after_lines: int = 50,
    group: Group | None = None,
    actor_times: ActorTimeShares | None = None,
    on_line: Callable[[int], None] | None = None,
    figures: list[dict[str, Any]] | None = None,
    store: ParameterStore | None = None,
    lockstep: Lockstep | None = None,
    histograms: LearnerHistograms | None = None,
    returns: Sequence[float] = (),
    start: StartingPoint | None = None,
    look_after: Callable[[], None] = lambda: None,
    **fields: Any,
) -> Run:
    """Trains on so many columns of each task, the `i`th from 1 of version `i`, until out of steps; gives up after 50 log lines.

    Args:
        drain: stop at once, or after more than `stop_after_lines`, and train on what the queue then holds.
        on_line: called once a line of metrics, the first being line 1.
        figures: where to put the lines of metrics, for a run that raises.
        spoilt, spoilt_to: the versions of the columns whose rewards are too large to learn from; one where the last is not given.
        returns: of the last episodes, of a run with one task.
        start: where the run stands; a new one where none is given.
        look_after: called with each line.
        fields: of the configuration, for batches of 4.
    """
    env, spoilt_to = tuple("ABC"[:tasks]), spoilt_to or spoilt
    config = LearnerConfig(env=env, unroll_length=STEPS, batch_size=4, log_seconds=1e-6, **fields)
    trained = [0] * tasks if start is None else start.trained_by_task
    queue, stop = UnrollQueue(capacity=100, max_line=0, trained=trained), threading.Event()
    lines = [] if figures is None else figures
    for task, count in columns.items():
        for version in range(1, count + 1):
            unroll = make_unroll(environments=1, version=version, seed=version)
            rewards = np.full_like(unroll.rewards, 3e38) if 0 < spoilt <= version <= spoilt_to else unroll.rewards
            asyncio.run(queue.put(replace(unroll, rewards=rewards), task))
    path.mkdir(exist_ok=True)
    keeps = group is None or group.place.rank == 0
    directory, learner = RunDirectory(path) if keeps else None, NotingLearner(transfer, group, (start or StartingPoint()).version)
    writer = MetricsWriter(directory.metrics, directory.tensorboard) if directory is not None else None

    def look_after_actors() -> None:
        if len(lines) > stop_after_lines:
            stop.set()
        look_after()

    def show(line: dict[str, Any]) -> None:
        lines.append(line)
        if on_line is not None:
            on_line(len(lines))

    training = Training(
        config=config,
        directory=directory,
        learner=learner,
        queue=queue,
        store=store or ParameterStore(),
        actors=actors or ActorRegistry(tasks),
        episodes=EpisodeLog(counts=[0] * tasks, recent_returns=[returns] if returns else ()),
        writer=writer,
        start=start or StartingPoint(),
        replay=TrajectoryReplay(config.replay_unrolls, seed=0) if config.replay_fraction else None,
        refused=dict,
        traffic=lambda: {"bytes_received": 0, "bytes_sent": 0},
        actor_times=actor_times or ActorTimeShares(),
        show=show,
        look_after_actors=look_after_actors,
        group=group,
        idle=idle_unroll(SPEC),
        lockstep=lockstep,
        histograms=histograms,
    )
    if drain and stop_after_lines == 50:
        stop.set()
    end = training.run(stop)
    if drain:
        queue.close(run_over=False)
        training.drain()
    training.finish(end)
    if writer is not None:
        writer.close()
    return Run(end, learner, queue, lines)


@pytest.mark.parametrize(
    ("mean", "settle_steps", "end", "steps"),
    [
        (9.0, 0, End.TOTAL_STEPS, 100),
        (9.0, 60, End.TOTAL_STEPS, 100),
        (10.0, 0, End.SOLVED, 0),
        (10.0, 60, End.SOLVED, 60),
        (10.0, 1000, End.SOLVED, 100),  # no steps are left to see whether it holds; the learning rate has fallen to 0 all the same
    ],
)
def test_a_run_that_ends_with_the_return_that_was_asked_for_is_solved(
    mean: float, settle_steps: int, end: End, steps: int, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", {0: 40}, returns=[mean] * 100, stop_at_return=10.0, settle_steps=settle_steps, total_steps=100)
    assert (run.end, len(run.learner.columns()) * 4 * STEPS) == (end, steps)


def test_a_run_that_was_solved_ends_at_once_when_it_is_started_again(tmp_path: Path) -> None:
    fields = {"returns": [10.0] * 100, "stop_at_return": 10.0, "settle_steps": 60, "total_steps": 1000}
    train(tmp_path, {0: 40}, **fields)  # type: ignore[arg-type]
    again = train(tmp_path, {0: 40}, start=find_starting_point(RunDirectory(tmp_path)), **fields)  # type: ignore[arg-type]
    assert (again.end, again.learner.columns()) == (End.SOLVED, [])


def test_steps_of_settling_whose_weights_are_lost_are_settled_again(tmp_path: Path) -> None:
    fields = {"returns": [10.0] * 100, "stop_at_return": 10.0, "settle_steps": 60, "total_steps": 1000}
    train(tmp_path, {0: 40}, **fields)  # type: ignore[arg-type]
    start = find_starting_point(RunDirectory(tmp_path))
    assert start.checkpoint is not None
    assert start.steps_trained == 60
    # As of a learner that was killed when it had settled for 60 steps, and whose checkpoint was written after 20 of them.
    saved = replace(start.checkpoint, state={**start.checkpoint.state, "env_steps": 20})
    again = train(tmp_path, {0: 40}, start=replace(start, checkpoint=saved), **fields)  # type: ignore[arg-type]
    assert (again.end, len(again.learner.columns()) * 4 * STEPS) == (End.SOLVED, 40)


class Died(Exception):
    """A learner did."""


def die(_: int) -> None:
    raise Died


def test_a_start_from_a_checkpoint_writes_no_copy_of_it(tmp_path: Path) -> None:
    train(tmp_path, {0: 8}, total_steps=8 * STEPS)
    checkpoints = RunDirectory(tmp_path).checkpoints
    before = sorted(checkpoints.iterdir())
    for _ in range(3):
        with pytest.raises(Died):
            train(tmp_path, {}, start=find_starting_point(RunDirectory(tmp_path)), on_line=die)
    assert sorted(checkpoints.iterdir()) == before


def test_while_updates_fail_no_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner_server.training._LARGEST_SANE", float("inf"))  # so that it is the weights' fault
    histograms = LearnerHistograms()
    run = train(tmp_path, {0: 44}, spoilt=1, spoilt_to=40, total_steps=44 * STEPS, checkpoint_seconds=1e-6, histograms=histograms)
    assert (run.learner.skipped_updates, run.learner.updates) == (10, 1)
    # At the start, before the first batch, and when it is over.
    assert histograms.stages["checkpoint"].count <= 4


def test_a_stop_saves_before_what_is_left_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = list[str]()

    def noted(name: str) -> Callable[..., None]:
        real = getattr(Training, name)

        def note(self: Training, *arguments: Any) -> None:
            order.append(name)
            real(self, *arguments)

        return note

    for name in ("save", "_train"):
        monkeypatch.setattr(Training, name, noted(name))
    train(tmp_path, {0: 8}, drain=True)
    assert order == ["save", "save", "_train", "_train"]


def test_actors_that_cannot_be_started_again_end_the_run_in_good_order(tmp_path: Path) -> None:
    def look_after() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    assert train(tmp_path, {0: 8}, look_after=look_after).end is End.FAILED


def test_part_of_each_batch_but_the_first_is_replayed_from_earlier_ones(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 10}, replay_fraction=0.5, total_steps=10 * STEPS)
    first, *later = run.learner.columns()
    assert (run.end, first, len(later)) == (End.TOTAL_STEPS, [1, 2], 4)
    for index, batch in enumerate(later, start=1):
        fresh, replayed = batch[:2], batch[2:]
        assert fresh == [2 * index + 1, 2 * index + 2]
        assert len(replayed) == 2
        assert set(replayed) <= set(range(1, 2 * index + 1))


def test_what_made_an_update_fail_is_not_replayed(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 20}, replay_fraction=0.5, spoilt=3, total_steps=20 * STEPS)
    assert run.learner.skipped_updates == 1
    assert sum(3 in batch or 4 in batch for batch in run.learner.columns()) == 1


def test_unrolls_that_no_weights_could_learn_from_are_skipped_and_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner_server.training._MOST_SKIPPED_IN_A_ROW", 3)
    run = train(tmp_path, {0: 24}, spoilt=1, spoilt_to=20, total_steps=24 * STEPS)
    assert (run.end, run.learner.skipped_updates, run.learner.updates) == (End.TOTAL_STEPS, 5, 1)


def test_replayed_steps_are_not_counted_again(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 10}, replay_fraction=0.5, total_steps=10 * STEPS)
    assert run.learner.env_steps == [0, 10, 20, 30, 40]
    account, last = run.queue.account(), run.figures[-1]
    assert (account.trained, account.received, account.waiting) == (50, 50, 0)
    assert (last["env_steps"], last["steps_trained"], last["trained_by_task"], last["learner_updates"]) == (50, 50, [50], 5)


def test_a_checkpoint_takes_the_account_and_the_ledgers_at_one_instant(tmp_path: Path) -> None:
    class Registry(ActorRegistry):
        queue: UnrollQueue

        def to_json(self) -> dict[str, Any]:
            locked.append(self.queue._lock.locked())
            return super().to_json()

    locked: list[bool] = []
    actors = Registry()
    put = UnrollQueue.put

    async def noting_put(self: UnrollQueue, *args: Any) -> None:
        actors.queue = self
        await put(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnrollQueue, "put", noting_put)
        train(tmp_path, {0: 4}, total_steps=4 * STEPS, actors=actors)
    assert locked
    assert all(locked)


def test_the_last_checkpoint_is_of_the_end_though_its_weights_were_saved_before(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 4}, spoilt=1, total_steps=4 * STEPS)
    assert run.learner.skipped_updates == 1
    start = find_starting_point(RunDirectory(tmp_path))
    assert start.checkpoint is not None
    assert (start.checkpoint.state["env_steps"], start.steps_lost) == (4 * STEPS, 0)
    assert start.version == start.checkpoint.version == run.figures[-1]["parameter_version"] == 2


def test_the_figures_say_what_actors_spend_their_time_on(tmp_path: Path) -> None:
    shares = ActorTimeShares()
    shares.add(ActorTimes(total=4.0, environment=1.0, inference=2.0, waiting=0.5))
    first = train(tmp_path, {0: 4}, total_steps=4 * STEPS, actor_times=shares).figures[0]
    assert (first["actor_environment_fraction"], first["actor_inference_fraction"], first["actor_wait_fraction"]) == (
        0.25,
        0.5,
        0.125,
    )


def test_without_replay_a_batch_is_what_came(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 8}, total_steps=8 * STEPS)
    assert run.learner.columns() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("replay_fraction", [0.0, 0.5])
def test_a_stopped_run_trains_on_all_that_came(tmp_path: Path, replay_fraction: float) -> None:
    run = train(tmp_path, {0: 4, 1: 3}, tasks=2, replay_fraction=replay_fraction, drain=True)
    assert (run.end, run.queue.account().trained_by_task) == (End.STOPPED, [4 * STEPS, 3 * STEPS])


class NotingLockstep(Lockstep):
    """Notes which version was the newest when it was told of a batch."""

    def __init__(self, store: ParameterStore) -> None:
        super().__init__(1)
        self.store = store
        self.versions: list[int] = []

    def note_trained(self) -> None:
        self.versions.append(self.store.version)
        super().note_trained()


def test_lockstep_hears_of_a_batch_when_its_version_is_out_and_of_one_that_was_skipped_too(tmp_path: Path) -> None:
    store = ParameterStore()
    lockstep = NotingLockstep(store)
    train(tmp_path, {0: 16}, spoilt=6, total_steps=16 * STEPS, store=store, lockstep=lockstep)
    assert lockstep.versions == [2, 2, 3, 4]


def test_in_lockstep_an_actor_that_is_silent_is_waited_for(tmp_path: Path) -> None:
    actors = ActorRegistry(2)
    for name in ("a", "b"):
        actors.join(name, 1, "here", 1)
    actors.join("a", 1, "here", 1).last_seen -= 3600.0
    run = train(tmp_path, {1: 8}, tasks=2, actors=actors, lockstep=Lockstep(2), stop_after_lines=3)
    assert (run.end, run.learner.columns()) == (End.STOPPED, [])


def test_tasks_without_actors_are_not_waited_for(tmp_path: Path) -> None:
    actors = ActorRegistry(3)
    for name in ("a", "b", "c"):
        actors.join(name, 1, "here", 1)
    silent = actors.join("a", 1, "here", 1)
    silent.last_seen -= 3600.0
    run = train(tmp_path, {1: 8, 2: 8}, tasks=3, actors=actors, total_steps=16 * STEPS)
    assert run.end is End.TOTAL_STEPS
    assert run.figures[-1]["trained_by_task"] == [0, 8 * STEPS, 8 * STEPS]
