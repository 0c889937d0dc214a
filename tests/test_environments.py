"""Vector environments brought to the unroll's convention, checked with an environment whose every number is known.

`Counter` is also what the tests of the actor step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from actor_client.actor import Actor
from impala.config import NetworkConfig
from impala.environments import OBSERVATION, Transition, VectorEnvironment, environment_spec
from impala.errors import ConfigError, UnsupportedSpace
from impala.networks import build_network

COUNTER = "CounterForTests-v0"
STOP = 2  # the action that ends an episode at once


class Counter(gymnasium.Env[np.ndarray, int]):
    """Counts to `ends_at`; observes [episode, count, action that led here or -1], rewards 10 count + action.

    Episodes end as `ending` says; "alternating" terminates in episodes 0, 2, ... and truncates in the others.
    """

    def __init__(self, ends_at: int = 3, ending: str = "terminated", start: int = 0, dtype: str = "float32") -> None:
        self.observation_space = spaces.Box(-1.0, 1e6, (3,), np.dtype(dtype).type)
        self.action_space = spaces.Discrete(3, start=start)
        self._ends_at, self._ending, self._start, self._dtype = ends_at, ending, start, dtype
        self._episode, self._count = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._count = self._episode + 1, 0
        return self._observe(-1), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._start <= action < self._start + 3
        self._count += 1
        number = int(action) - self._start
        ends = self._count == self._ends_at or number == STOP
        truncates = self._ending == "truncated" or (self._ending == "alternating" and self._episode % 2 == 1)
        return self._observe(int(action)), 10.0 * self._count + number, ends and not truncates, ends and truncates, {}

    def _observe(self, action: int) -> np.ndarray:
        return np.array([self._episode, self._count, action], dtype=self._dtype)


class Spaces(gymnasium.Env[Any, Any]):
    """An environment of any spaces, which nothing is done with but looking at them."""

    times_closed: ClassVar[int] = 0

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def close(self) -> None:
        Spaces.times_closed += 1


class SameStepCounters(SyncVectorEnv):
    """A native vector form that restarts an episode in the step that ends it."""

    times_closed: ClassVar[int] = 0

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        super().__init__([lambda: Counter(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    def close_extras(self, **kwargs: Any) -> None:
        SameStepCounters.times_closed += 1
        super().close_extras(**kwargs)


class OneBuffer(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A native vector form that counts steps, and returns one and the same array of observations each time."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(0.0, 1e6, (2,))
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._buffer = np.zeros((num_envs, 2), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._buffer[:] = 0.0
        return self._buffer, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._buffer += 1.0
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return self._buffer, np.ones(self.num_envs), never, never, {}


@contextmanager
def registered(environment_id: str = COUNTER, **arguments: Any) -> Iterator[str]:
    """Registers an environment, `Counter` unless told otherwise, for the time of a test."""
    gymnasium.register(environment_id, **{"entry_point": Counter, "disable_env_checker": True, **arguments})
    try:
        yield environment_id
    finally:
        del gymnasium.registry[environment_id]


@pytest.fixture(name="counter")
def _counter() -> Iterator[str]:
    with registered() as environment_id:
        yield environment_id


def play(environment: VectorEnvironment, *actions: list[int]) -> list[Transition]:
    return [environment.step(np.array(action)) for action in actions]


def play_episodes(counter: str, steps: int, **kwargs: Any) -> list[Transition]:
    """Returns the transitions of a single counter under action 1, from its first observation on."""
    environment = VectorEnvironment(counter, kwargs, 1)
    environment.reset(0)
    transitions = play(environment, *[[1]] * steps)
    environment.close()
    return transitions


def test_cartpole_is_stepped_in_its_native_vector_form() -> None:
    environment = VectorEnvironment("CartPole-v1", {}, 4)
    assert isinstance(environment._envs.unwrapped, CartPoleVectorEnv)
    environment.close()


@pytest.mark.parametrize("environments", [1, 4])
def test_cartpole_restarts_one_step_after_an_episode_ends(environments: int) -> None:
    environment = VectorEnvironment("CartPole-v1", {}, environments)
    environment.reset(0)
    push, ended, seen = np.zeros(environments, dtype=np.int64), np.zeros(environments, dtype=np.bool_), 0
    for _ in range(40):
        transition = environment.step(push)
        assert transition.is_first.tolist() == ended.tolist()
        # A pole that was just put up again is within 0.05 of upright; one that fell is beyond 12 degrees.
        pole = np.abs(transition.observations[OBSERVATION][:, 2])
        assert (pole[ended] <= 0.05).all()
        assert (transition.rewards == ~ended).all()
        ended = np.zeros(environments, dtype=np.bool_)
        ended[transition.ended] = True
        assert (pole[ended] > 0.2).all()
        seen += len(transition.ended)
    assert seen >= environments
    environment.close()


def test_the_first_observations_are_those_of_a_reset(counter: str) -> None:
    environment = VectorEnvironment(counter, {}, 2)
    assert environment.reset(0)[OBSERVATION].tolist() == [[0, 0, -1], [0, 0, -1]]
    environment.close()


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_the_last_observation_of_an_episode_is_its_true_final_one(counter: str, ending: str) -> None:
    observations = [transition.observations[OBSERVATION][0].tolist() for transition in play_episodes(counter, 5, ending=ending)]
    # Count 3 is the final observation of episode 0, and the next the first of episode 1.
    assert observations == [[0, 1, 1], [0, 2, 1], [0, 3, 1], [1, 0, -1], [1, 1, 1]]


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_is_first_is_set_one_transition_after_the_end(counter: str, ending: str) -> None:
    transitions = play_episodes(counter, 8, ending=ending)
    assert [bool(transition.is_first[0]) for transition in transitions] == [False, False, False, True, False, False, False, True]


def test_a_reset_row_has_no_reward(counter: str) -> None:
    rewards = [transition.rewards for transition in play_episodes(counter, 6)]
    assert [float(reward[0]) for reward in rewards] == [11.0, 21.0, 31.0, 0.0, 11.0, 21.0]
    assert all(reward.dtype == np.float32 for reward in rewards)


def test_terminated_and_truncated_are_told_apart(counter: str) -> None:
    transitions = play_episodes(counter, 8, ending="alternating")
    assert [bool(transition.terminated[0]) for transition in transitions] == [False, False, True] + [False] * 5
    assert [transition.ended.tolist() for transition in transitions] == [[], [], [0], [], [], [], [0], []]


def test_a_time_limit_of_the_registration_is_not_termination() -> None:
    with registered(max_episode_steps=2) as counter:
        transitions = play_episodes(counter, 3)
    assert [bool(transition.terminated[0]) for transition in transitions] == [False, False, False]
    assert [transition.ended.tolist() for transition in transitions] == [[], [0], []]


def test_episodes_report_true_returns_and_lengths_without_the_reset_row(counter: str) -> None:
    episodes = [transition.episodes for transition in play_episodes(counter, 8)]
    assert [[(one.episode_return, one.length) for one in some] for some in episodes] == [
        *([], [], [(63.0, 3)]),
        *([], [], [], [(63.0, 3)]),
        [],
    ]


def test_ended_names_the_environments_whose_episode_ended(counter: str) -> None:
    environment = VectorEnvironment(counter, {}, 3)
    environment.reset(0)
    first, second, third = play(environment, [0, STOP, STOP], [1, 0, 0], [1, STOP, 1])
    environment.close()
    assert [transition.ended.tolist() for transition in (first, second, third)] == [[1, 2], [], [0, 1]]
    assert [(one.episode_return, one.length) for one in first.episodes] == [(12.0, 1), (12.0, 1)]
    # Environment 0 went on from its first step; environment 1 was reset in the second.
    assert [(one.episode_return, one.length) for one in third.episodes] == [(62.0, 3), (12.0, 1)]


def test_a_reset_forgets_the_episodes_under_way(counter: str) -> None:
    environment = VectorEnvironment(counter, {}, 2)
    environment.reset(0)
    play(environment, [0, STOP])
    environment.reset(0)
    first, _, third = play(environment, [0, 0], [0, 0], [0, 0])
    environment.close()
    assert first.is_first.tolist() == [False, False]
    assert [(one.episode_return, one.length) for one in third.episodes] == [(60.0, 3), (60.0, 3)]


def test_later_steps_leave_earlier_transitions_as_they_were(counter: str) -> None:
    environment = VectorEnvironment(counter, {}, 2)
    environment.reset(0)
    (transition,) = play(environment, [STOP, 0])
    before = [array.copy() for array in (transition.is_first, transition.rewards, transition.terminated, transition.ended)]
    play(environment, [0, 0], [0, STOP], [0, 0])
    after = [transition.is_first, transition.rewards, transition.terminated, transition.ended]
    environment.close()
    assert [array.tolist() for array in after] == [array.tolist() for array in before]


def test_actions_that_start_elsewhere_are_numbered_from_zero(counter: str) -> None:
    environment = VectorEnvironment(counter, {"start": 5}, 3)
    environment.reset(0)
    (transition,) = play(environment, [0, 1, 2])
    environment.close()
    assert transition.observations[OBSERVATION][:, 2].tolist() == [5, 6, 7]
    assert environment.spec.num_actions == 3


def test_a_vector_form_that_restarts_otherwise_is_not_used() -> None:
    SameStepCounters.times_closed = 0
    with registered(vector_entry_point=SameStepCounters) as counter:
        transitions = play_episodes(counter, 4)
        environment = VectorEnvironment(counter, {}, 1)
        environment.close()
    assert transitions[2].observations[OBSERVATION].tolist() == [[0, 3, 1]]
    assert [bool(transition.is_first[0]) for transition in transitions] == [False, False, False, True]
    assert environment._envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert SameStepCounters.times_closed == 2  # each of the two that was made and not used


def test_observations_travel_as_float32(counter: str) -> None:
    environment = VectorEnvironment(counter, {"dtype": "float64"}, 2)
    assert environment.reset(0)[OBSERVATION].dtype == np.float32
    assert play(environment, [0, 0])[0].observations[OBSERVATION].dtype == np.float32
    assert environment.spec.observations[OBSERVATION].dtype == np.float32
    environment.close()


def test_the_spec_says_the_shape_of_observations_and_the_number_of_actions() -> None:
    spec = environment_spec("CartPole-v1", {})
    assert {name: entry.shape for name, entry in spec.observations.items()} == {OBSERVATION: (4,)}
    assert spec.num_actions == 2


def test_the_arguments_reach_the_environment(counter: str) -> None:
    assert [transition.ended.tolist() for transition in play_episodes(counter, 2, ends_at=2)] == [[], [0]]


@pytest.mark.parametrize(
    ("environment_id", "kwargs"),
    [
        ("NoSuchEnvironment-v0", {}),
        ("NoSuchNamespace/Pong-v5", {}),
        ("CartPole-v99", {}),
        ("not an id", {}),
        ("PackageIsMissing-v0", {}),
        ("CartPole-v1", {"gravity_of_the_moon": 1.6}),
        (COUNTER, {"colour": "red"}),
        (COUNTER, {"dtype": "no such dtype"}),
    ],
    ids=str,
)
def test_an_environment_that_cannot_be_made_is_a_config_error_of_one_line(environment_id: str, kwargs: dict[str, Any]) -> None:
    with registered(), registered("PackageIsMissing-v0", entry_point="package_that_nobody_has.envs:Env"):
        with pytest.raises(ConfigError, match=f"^environment: cannot make '{environment_id}'") as raised:
            VectorEnvironment(environment_id, kwargs, 2)
        assert "\n" not in str(raised.value)
        assert all(name in str(raised.value) for name in kwargs)


@pytest.mark.parametrize(
    "error", [ValueError("no such map"), KeyError("9x9"), AssertionError("gravity"), TypeError("two\nlines")], ids=repr
)
def test_arguments_that_an_environment_refuses_are_a_config_error(error: Exception) -> None:
    def refuse(**_: Any) -> Counter:
        raise error

    with registered(entry_point=refuse) as counter, pytest.raises(ConfigError, match=r"^environment: cannot make .*size") as raised:
        VectorEnvironment(counter, {"size": 9}, 2)
    assert "\n" not in str(raised.value)


def test_an_id_that_would_import_a_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "module_of_a_stranger.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="would import a module"):
        VectorEnvironment("module_of_a_stranger:CartPole-v1", {}, 1)
    assert not marker.exists()


BOX, DISCRETE = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Box(0, 255, (8, 8), np.uint8), DISCRETE, "observations Box"),
        (spaces.Box(-1.0, 1.0, ()), DISCRETE, "observations Box"),
        (spaces.Discrete(4), DISCRETE, r"observations Discrete\(4\)"),
        (spaces.Dict({"position": BOX}), DISCRETE, "observations Dict"),
        (BOX, spaces.Box(-1.0, 1.0, (2,)), "actions Box"),
        (BOX, spaces.MultiDiscrete([2, 3]), "actions MultiDiscrete"),
    ],
    ids=str,
)
def test_a_space_that_is_not_supported_is_named(observation: spaces.Space[Any], action: spaces.Space[Any], named: str) -> None:
    with registered(entry_point=Spaces) as environment_id, pytest.raises(UnsupportedSpace, match=f"{environment_id} has {named}"):
        VectorEnvironment(environment_id, {"observation": observation, "action": action}, 1)


def test_an_environment_that_is_not_supported_is_closed_again() -> None:
    Spaces.times_closed = 0
    with registered(entry_point=Spaces) as environment_id, pytest.raises(UnsupportedSpace):
        VectorEnvironment(environment_id, {"observation": spaces.Discrete(4), "action": DISCRETE}, 2)
    assert Spaces.times_closed == 2


def test_a_reused_observation_buffer_does_not_corrupt_an_actor_s_earlier_observations() -> None:
    with registered(vector_entry_point=OneBuffer) as environment_id:
        environment = VectorEnvironment(environment_id, {}, 2)
    actor = Actor(environment, build_network(NetworkConfig(), environment.spec), unroll_length=4, seed=0)
    first = actor.collect().unroll.observations[OBSERVATION].copy()
    second = actor.collect().unroll.observations[OBSERVATION].copy()
    environment.close()
    assert first[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert second[:, 1, 1].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode"])
def test_arguments_of_the_vector_form_are_not_the_learners_to_choose(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        VectorEnvironment("CartPole-v1", {name: None}, 1)


def test_a_reset_pays_nothing_whatever_the_vector_form_says() -> None:
    environment = VectorEnvironment("CartPole-v1", {}, 2)
    environment.reset(0)
    plain = environment._envs.step
    environment._envs.step = lambda actions: (plain(actions)[0], np.full(2, 5.0), *plain(actions)[2:])  # type: ignore[method-assign]
    rewards = np.array([], dtype=np.float32)
    while not (transition := environment.step(np.zeros(2, dtype=np.int64))).is_first.any():
        rewards = transition.rewards
    assert rewards.tolist() == [5.0, 5.0]
    assert (transition.rewards == np.where(transition.is_first, 0.0, 5.0)).all()
    environment.close()
