"""Several learners that train as one: the same step as one learner with all their batches, and what they say to each other."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from impala.config import LossConfig, OptimiserConfig
from impala.errors import ConfigError
from impala.networks import Network
from impala.unroll import Unroll, idle_unroll
from learner_server.config import LearnerConfig
from learner_server.group import Group, Place, RankLost, join_group
from learner_server.learner import Learner
from learner_server.resume import StartingPoint, share_starting_point
from learner_server.rounds import End
from learner_server.run import _check_alike, _check_ports
from run_directory.checkpoint import Checkpoint, load_newest_checkpoint
from run_directory.journal import read_metrics
from tests.network_cases import Case
from tests.ranks import Ranks
from tests.samples import SPEC, make_unroll
from tests.test_networks import CASES, T
from tests.test_training import STEPS, train
from tests.test_transfer import random_batch


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.end()


# --- Where a process is


def test_torchrun_says_where_a_process_is() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of_environment(environment) == Place(rank=5, size=8, local_rank=1, machine=1, local_size=4)


def test_without_torchrun_a_learner_is_by_itself() -> None:
    assert Place.of_environment({}) == Place(rank=0, size=1, local_rank=0, machine=0)


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}],
)
def test_what_torchrun_would_not_say_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="RANK, WORLD_SIZE and the like: expected"):
        Place.of_environment(environment)


def test_ranks_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"several learners: expected torchrun to start them, came .*MASTER_ADDR"):
        join_group(Place(size=2), torch.device("cpu"))


def refusal(config: LearnerConfig, place: Place) -> str:
    with pytest.raises(ConfigError) as caught:
        _check_ports(config, place)
    return str(caught.value)


def test_the_ports_of_a_machines_learners_are_apart() -> None:
    two = Place(size=2, local_size=2)
    config = LearnerConfig(env=("A",), listen="127.0.0.1:50051", health="127.0.0.1:50052", metrics="127.0.0.1:50053")
    assert refusal(config, two) == "health: expected none of those of listen, 50051 to 50052 for 2 learners, came 50052"
    assert refusal(replace(config, health="127.0.0.1:50060", metrics="127.0.0.1:50061"), two).startswith(
        "metrics: expected none of those of health"
    )
    _check_ports(config, Place())
    _check_ports(replace(config, health="127.0.0.2:50051"), Place())
    _check_ports(replace(config, health="127.0.0.1:50060"), two)
    _check_ports(LearnerConfig(env=("A",), health="127.0.0.1:0", metrics="127.0.0.1:0"), two)


def _start_unlike(group: Group) -> None:
    config = LearnerConfig(env=("A",), listen=f"127.0.0.1:{5000 + group.place.rank}")
    _check_alike(config, group)
    with pytest.raises(ConfigError, match="batch_size: expected the same of every learner, came 32 for rank 0, 33 for rank 1"):
        _check_alike(replace(config, batch_size=32 + group.place.rank), group)


def test_learners_that_were_started_unlike_refuse_to_train(ranks: Ranks) -> None:
    ranks(_start_unlike)


# --- What they say to each other


def _talk(group: Group) -> None:
    rank, size = group.place.rank, group.place.size
    assert group.exchange([rank, 0.5]) == [[each, 0.5] for each in range(size)]
    # Of different lengths, and beyond ASCII.
    said = [{"rank": each, "text": "ä" * 1000 * each, "none": None} for each in range(size)]
    assert group.collect(said[rank]) == said
    assert group.share(b"first" if rank == 0 else b"") == b"first"
    assert group.share(b"" if rank == 0 else b"not asked") == b""
    for flags, agreed in [((True, True), True), ((True, False), False), ((False, False), False)]:
        assert bool(group.all_true(torch.tensor(flags[rank]))) is agreed
    gather = group.gather(idle=False)
    assert gather is not None
    assert gather(torch.full((3, 2), 1.0 + rank)).tolist() == [[[1.0 + each] * 2] * 3 for each in range(size)]
    gather = group.gather(idle=rank == 1)
    assert gather is not None
    assert gather(torch.full((3, 2), 1.0 + rank)).tolist() == [[[1.0] * 2] * 3, [[0.0] * 2] * 3]


def test_ranks_hear_what_every_rank_says(ranks: Ranks) -> None:
    ranks(_talk)


def test_a_learner_by_itself_hears_itself() -> None:
    alone = Group()
    assert alone.exchange([1.0, 2.0]) == [[1.0, 2.0]]
    assert alone.collect({"a": 1}) == [{"a": 1}]
    assert alone.share(b"x") == b"x"


def _lose_one(group: Group) -> None:
    group.exchange([0.0])
    if group.place.rank:
        os._exit(0)
    with pytest.raises(RankLost, match="rank 0: another of the 2 learners is gone"):
        group.exchange([0.0])
    raise RuntimeError("it was noticed")


def _fault(group: Group) -> None:
    with group.meeting():
        torch.ones(3, 3) @ torch.ones(4, 2)


def test_a_fault_of_one_s_own_is_not_taken_for_another_learner_s_end() -> None:
    ranks = Ranks()
    with pytest.raises(AssertionError) as caught:
        ranks(_fault)
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in str(caught.value)
    assert "RankLost" not in str(caught.value)
    ranks.end()


def test_a_rank_that_is_gone_is_noticed() -> None:
    ranks = Ranks()
    with pytest.raises(AssertionError) as caught:
        ranks(_lose_one)
    assert "it was noticed" in str(caught.value)
    assert "rank 1 is gone" in str(caught.value)
    ranks.end()


# --- The step


def _learner(case: Case, group: Group | None = None, **more: Any) -> Learner:
    network = case.build()
    return Learner(network, LossConfig(), OptimiserConfig(), total_steps=10_000, group=group, **more)


def _gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in learner.network.named_parameters() if weight.grad is not None}


def _as_one_vector(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def _statistics(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.named_buffers()}


def _half(batch: Unroll[np.ndarray], rank: int) -> Unroll[np.ndarray]:
    """Returns a rank's part of a batch of three trajectories: two of them, or one."""
    return batch.columns(0, 2) if rank == 0 else batch.columns(2, 3)


def _step_together(group: Group) -> None:
    for case in [param.values[0] for param in CASES]:
        assert isinstance(case, Case)
        batch = random_batch(case, case.build(seed=1))
        alone, together = _learner(case), _learner(case, group)
        for number in range(2):
            alone.step(batch, 20 * number)
            report = together.step(_half(batch, group.place.rank), 20 * number)
            theirs = _as_one_vector(_gradients(alone))
            assert not report.skipped
            # Of the length of the whole: a convolution's gradient sums over places, in another order with another batch. By
            # processor, the largest is 4.3e-7 to 1.6e-6.
            difference = _as_one_vector(_gradients(together)) - theirs
            assert float(difference.norm()) <= 1e-5 * float(theirs.norm()), (case, number)
            for name, statistic in _statistics(together.network).items():
                torch.testing.assert_close(statistic, _statistics(alone.network)[name], rtol=1e-5, atol=1e-6)
            # From the same weights again, for Adam makes a step of any difference.
            together.network.load_state_dict(alone.network.state_dict())


def test_a_step_of_two_ranks_is_that_of_one_with_both_batches(ranks: Ranks) -> None:
    ranks(_step_together)


def _step_without_batch(group: Group) -> None:
    for case in [param.values[0] for param in CASES]:
        assert isinstance(case, Case)
        batch = random_batch(case, case.build(seed=1))
        alone, together = _learner(case), _learner(case, group)
        alone.step(batch, 0)
        idle = idle_unroll(replace(SPEC, unroll_length=T - 1, environment=case.spec, state=alone.network.state_spec()))
        together.step(batch if group.place.rank == 0 else idle, 0, idle=group.place.rank > 0)
        weights = dict(alone.network.state_dict())
        for name, tensor in together.network.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


def test_a_rank_without_a_batch_adds_nothing(ranks: Ranks) -> None:
    ranks(_step_without_batch)


def _step_on_garbage(group: Group) -> None:
    case = CASES[0].values[0]
    assert isinstance(case, Case)
    learner, batch = _learner(case, group), random_batch(case, case.build(seed=1))
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    spoilt = replace(batch, rewards=np.full_like(batch.rewards, 3e38))
    report = learner.step(spoilt if group.place.rank else batch, 0)
    assert report.skipped
    assert (learner.version, learner.skipped_updates) == (1, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.network.state_dict().items())


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(ranks: Ranks) -> None:
    ranks(_step_on_garbage)


def _begin_apart(group: Group) -> None:
    case = CASES[0].values[0]
    assert isinstance(case, Case)
    network = case.build(seed=group.place.rank)
    Learner(network, LossConfig(), OptimiserConfig(), total_steps=1, group=group)
    wanted = case.build(seed=0).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


def test_all_begin_with_rank_0s_weights(ranks: Ranks) -> None:
    ranks(_begin_apart)


def test_an_idle_unroll_looks_like_any_other_and_nobody_acts_in_it() -> None:
    idle, batch = idle_unroll(SPEC), make_unroll(environments=1)
    assert (idle.length, idle.environments, idle.env_steps) == (5, 1, 0)
    for ours, theirs in zip(idle.arrays(), batch.arrays(), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


# --- The loop


def _train(group: Group, folder: Path) -> None:
    # Six batches here, two there: the other four steps are taken by rank 0 alone.
    count = 24 if group.place.rank == 0 else 8
    run = train(folder, {0: count}, group=group, total_steps=32 * STEPS, stop_after_lines=100_000)
    assert run.end is End.TOTAL_STEPS
    assert (run.learner.updates, run.learner.version) == (6, 7)
    assert [len(batch) for batch in run.learner.batches] == ([4] * 6 if group.place.rank == 0 else [4, 4, 0, 0, 0, 0])
    # The schedule goes by the steps of all.
    assert run.learner.env_steps == [0, 40, 80, 100, 120, 140]
    last = run.figures[-1]
    assert (last["env_steps"], last["steps_received"], last["steps_waiting"], last["trained_by_task"]) == (160, 160, 0, [160])
    assert last["actors_by_rank"] == [0, 0]
    weights = group.collect({name: tensor.tolist() for name, tensor in run.learner.network.state_dict().items()})
    assert weights[0] == weights[1]


def test_a_rank_without_batches_does_not_hold_up_the_others(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_train, tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["ended"] == "total_steps"
    checkpoint = load_newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.version, checkpoint.state["env_steps"]) == (7, 160)
    assert len(checkpoint.state["replay_random_states"]) == 2


def _stop(group: Group, folder: Path) -> None:
    # Rank 1 is told to stop, and no other; what waits anywhere is trained on.
    rank = group.place.rank
    run = train(folder, {0: 3 if rank else 7}, group=group, drain=True, stop_after_lines=50 if rank else 49)
    assert (run.end, run.queue.account().trained) == (End.STOPPED, STEPS * (3 if rank else 7))
    assert run.figures[-1]["env_steps"] == 10 * STEPS


def test_one_rank_that_is_told_to_stop_stops_all_in_good_order(ranks: Ranks, tmp_path: Path) -> None:
    ranks(_stop, tmp_path)


def _share(group: Group) -> None:
    checkpoint = Checkpoint(
        version=9,
        parameters={"a.weight": torch.arange(6.0).reshape(2, 3)},
        optimiser={"0.step": torch.tensor(4.0)},
        random={"cpu": torch.arange(5, dtype=torch.uint8)},
        state={"actors": {"next_index": 3, "actors": {}}},
    )
    start = StartingPoint(
        checkpoint=checkpoint,
        run_id="abc",
        version=1009,
        learner_updates=8,
        skipped_updates=1,
        steps_received=500,
        steps_trained=400,
        steps_dropped={"stale": 20},
        steps_lost=5,
        trained_by_task=[300, 100],
        episodes=[3, 4],
        recent_returns=[[1.0], [2.0]],
        seconds=6.0,
    )
    ours = share_starting_point(group, 2, start if group.place.rank == 0 else None)
    if group.place.rank == 0:
        assert ours is start
        return
    # One run, one version, one schedule ...
    for name in ("run_id", "version", "learner_updates", "skipped_updates", "steps_trained"):
        assert getattr(ours, name) == getattr(start, name), name
    assert ours.checkpoint is not None
    assert (ours.checkpoint.version, ours.checkpoint.state) == (checkpoint.version, checkpoint.state)
    for part in ("parameters", "optimiser", "random"):
        theirs, sent = getattr(checkpoint, part), getattr(ours.checkpoint, part)
        assert theirs.keys() == sent.keys()
        assert all(torch.equal(sent[name], tensor) for name, tensor in theirs.items())
    # ... and accounts that are added up.
    assert (ours.steps_received, ours.steps_dropped, ours.trained_by_task) == (0, {}, [0, 0])
    assert (ours.episodes, ours.recent_returns, ours.seconds) == ([0, 0], [(), ()], 0.0)


def test_all_begin_where_the_run_stands(ranks: Ranks) -> None:
    ranks(_share)


def _share_nothing(group: Group) -> None:
    start = share_starting_point(group, 1, StartingPoint(run_id="new") if group.place.rank == 0 else None)
    assert (start.run_id, start.checkpoint, start.version) == ("new", None, 1)


def test_a_new_run_begins_alike_everywhere(ranks: Ranks) -> None:
    ranks(_share_nothing)
