"""Trajectory replay: what is held, how it is drawn, and how much memory that takes."""

import json
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from impala.errors import CheckpointError
from impala.replay import TrajectoryReplay
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.unroll import Unroll, concatenate
from tests.samples import make_unroll


def numbered(first: int, count: int) -> Unroll[np.ndarray]:
    """Returns a recurrent unroll whose columns are numbered by their version, from `first` on."""
    return make_unroll(
        environments=count,
        seed=first,
        initial_state={"hidden": np.random.default_rng(first).normal(size=(count, 2)).astype(np.float32)},
        parameter_version=np.arange(first, first + count, dtype=np.int64),
    )


def filled(capacity: int = 8, *, seed: int = 0) -> TrajectoryReplay:
    """Returns a full replay of trajectories 0, 1, 2, ..."""
    replay = TrajectoryReplay(capacity, seed)
    replay.add(numbered(0, capacity))
    return replay


def assert_same_column(drawn: Unroll[np.ndarray], index: int, column: Unroll[np.ndarray]) -> None:
    for array, expected in zip(drawn.columns(index, index + 1).arrays(), column.arrays(), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("capacity", [1, 3, 10])
def test_the_newest_trajectories_are_held_whole(capacity: int) -> None:
    replay, first = TrajectoryReplay(capacity, 0), 1
    held: deque[Unroll[np.ndarray]] = deque(maxlen=capacity)
    for width in (1, *np.random.default_rng(capacity).integers(1, 14, size=11).tolist(), 2, 1):
        unroll = numbered(first, width)
        first += unroll.environments
        replay.add(unroll)
        held.extend(concatenate([unroll.columns(e, e + 1)]) for e in range(unroll.environments))
        assert len(replay) == len(held)
        drawn, by_version = replay.sample(200), {int(column.parameter_version[0]): column for column in held}
        assert set(drawn.parameter_version.tolist()) == by_version.keys()
        for index in range(0, 200, 10):
            assert_same_column(drawn, index, by_version[int(drawn.parameter_version[index])])


def test_every_trajectory_held_is_drawn_equally_often_and_independently() -> None:
    replay = filled(8)
    first, second = replay.sample(8_000).parameter_version, replay.sample(8_000).parameter_version
    # Of 8,000 draws with a chance of 1/8 each the deviation is 30; of pairs of draws, with 1/64, it is 11.
    assert all(850 < count < 1_150 for count in np.bincount(first, minlength=8))
    assert all(70 < count < 180 for count in np.bincount(first * 8 + second, minlength=64))


def test_what_is_held_and_what_is_drawn_are_copies() -> None:
    unroll, replay = numbered(0, 4), TrajectoryReplay(4, 0)
    rewards = {int(version): unroll.rewards[:, version].copy() for version in unroll.parameter_version}
    replay.add(unroll)
    unroll.rewards[:] = np.nan
    replay.sample(10).rewards[:] = np.nan
    drawn = replay.sample(10)
    for index, version in enumerate(drawn.parameter_version.tolist()):
        np.testing.assert_array_equal(drawn.rewards[:, index], rewards[version])


def test_entries_keep_their_names_whatever_their_order() -> None:
    unroll, replay = make_unroll(environments=1), TrajectoryReplay(2, 0)
    ones, twos = (np.full((6, 1, 2), number, dtype=np.float32) for number in (1.0, 2.0))
    replay.add(replace(unroll, observations={"one": ones, "two": twos}))
    replay.add(replace(unroll, observations={"two": twos, "one": ones}))
    drawn = replay.sample(20).observations
    assert (float(drawn["one"].min()), float(drawn["two"].max())) == (1.0, 2.0)
    assert (float(drawn["one"].max()), float(drawn["two"].min())) == (1.0, 2.0)


def unroll_of(spec: UnrollSpec, environments: int) -> Unroll[np.ndarray]:
    rows, actions = (spec.unroll_length, environments), spec.environment.actions
    return make_unroll(
        length=spec.unroll_length,
        environments=environments,
        observations={
            name: np.zeros((rows[0] + 1, environments, *entry.shape), dtype=entry.dtype)
            for name, entry in spec.environment.observations.items()
        },
        actions=np.zeros((*rows, *actions.shape), dtype=actions.dtype),
        initial_state={name: np.zeros((environments, *entry.shape), dtype=entry.dtype) for name, entry in spec.state.items()},
    )


IMAGE, VECTOR = EntrySpec(shape=(84, 84), dtype=np.dtype(np.uint8)), EntrySpec(shape=(3,), dtype=np.dtype(np.float32))
TASK = EntrySpec(shape=(), dtype=np.dtype(np.int64), categories=(4,))


@pytest.mark.parametrize(
    ("length", "observations", "actions", "state", "expected"),
    [
        (5, {"observation": VECTOR}, discrete(2), {}, 6 * (12 + 1) + 5 * (8 + 1 + 8) + 8),
        (20, {"observation": IMAGE, "task": TASK}, ActionSpec(sizes=(3, 4)), {}, 21 * (7056 + 8 + 1) + 20 * (16 + 9) + 8),
        (3, {"a": VECTOR, "b": VECTOR}, ActionSpec(dimensions=6), {"lstm.h": VECTOR}, 4 * 25 + 3 * (24 + 9) + 12 + 8),
    ],
    ids=["vector", "image and choices", "real numbers and a state"],
)
def test_the_memory_is_what_was_stated_before(length: int, observations: Any, actions: Any, state: Any, expected: int) -> None:
    environment = EnvironmentSpec(observations=observations, actions=actions)
    spec = UnrollSpec(unroll_length=length, max_environments=8, environment=environment, state=state)
    assert TrajectoryReplay.bytes_per_trajectory(spec) == expected
    replay = TrajectoryReplay(7, 0)
    assert replay.nbytes == 0
    for environments in (2, 8, 3):
        replay.add(unroll_of(spec, environments))
        assert replay.nbytes == 7 * expected


def test_draws_follow_the_seed_and_go_on_from_a_kept_state() -> None:
    one, same, other = filled(seed=1), filled(seed=1), filled(seed=2)
    draws = [replay.sample(50).parameter_version.tolist() for replay in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]
    other.random_state = json.loads(json.dumps(one.random_state))
    assert other.sample(50).parameter_version.tolist() == one.sample(50).parameter_version.tolist()


@pytest.mark.parametrize(
    "state", [{}, {"bit_generator": "MT19937", "state": {}}, {"bit_generator": "PCG64", "state": {"state": "x"}}]
)
def test_a_state_of_another_generator_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="random_state: expected"):
        filled().random_state = state


def test_nothing_is_drawn_from_an_empty_replay() -> None:
    with pytest.raises(ValueError, match="expected 0 from an empty replay, came 3"):
        TrajectoryReplay(4, 0).sample(3)
