"""Vector environments brought to the unroll's convention, checked with environments whose every number is known.

`Counter` is also what the tests of the actor step.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
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

from impala.config import AgentConfig, EnvironmentConfig, NetworkConfig
from impala.environments import OBSERVATION, Hosting, Transition, VectorEnvironment, agent_spec
from impala.environments.padding import info_masks
from impala.errors import ConfigError, UnsupportedSpace
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec

COUNTER = "CounterForTests-v0"
STOP = 2  # the action that ends an episode at once


class Counter(gymnasium.Env[np.ndarray, int]):
    """Counts to `ends_at`; observes [episode, count, action that led here or -1], rewards 10 count + action.

    Episodes are numbered from the last reset with a seed. They end as `ending` says; "alternating" terminates in episodes 0, 2, ...
    and truncates in the others. `lives` are in info, one fewer for every step.
    """

    def __init__(
        self,
        ends_at: int = 3,
        ending: str = "terminated",
        start: int = 0,
        dtype: str = "float32",
        lives: int = 0,
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1e6, (3,), np.dtype(dtype).type)
        self.action_space = spaces.Discrete(3, start=start)
        self._ends_at, self._ending, self._start, self._dtype, self._lives = ends_at, ending, start, dtype, lives
        self._episode, self._count = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._count = self._episode + 1 if seed is None else 0, 0
        return self._observe(-1), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._start <= action < self._start + 3
        self._count += 1
        number = int(action) - self._start
        ends = self._count == self._ends_at or number == STOP
        truncates = self._ending == "truncated" or (self._ending == "alternating" and self._episode % 2 == 1)
        return self._observe(int(action)), 10.0 * self._count + number, ends and not truncates, ends and truncates, self._info()

    def _observe(self, action: int) -> np.ndarray:
        return np.array([self._episode, self._count, action], dtype=self._dtype)

    def _info(self) -> dict[str, Any]:
        return {"lives": self._lives - self._count} if self._lives else {}


class Fixed(gymnasium.Env[Any, Any]):
    """Always observes `value`, has `infos` one after the other in its info, and remembers the last action that it was given."""

    times_closed: ClassVar[int] = 0
    last: ClassVar[Any] = None

    def __init__(
        self, observation: spaces.Space[Any], action: spaces.Space[Any], value: Any = None, infos: Sequence[dict[str, Any]] = ({},)
    ) -> None:
        self.observation_space, self.action_space = observation, action
        self._value, self._infos, self._count = observation.sample() if value is None else value, infos, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._value, self._infos[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action) if isinstance(self.action_space, spaces.Box) else action)
        Fixed.last = action
        self._count += 1
        return self._value, 2.5, False, False, self._infos[self._count % len(self._infos)]

    def close(self) -> None:
        Fixed.times_closed += 1


class NativeCounters(SyncVectorEnv):
    """A native vector form in NEXT_STEP mode."""

    mode: ClassVar[AutoresetMode] = AutoresetMode.NEXT_STEP
    times_closed: ClassVar[int] = 0

    def __init__(self, num_envs: int, ends_at: int = 3, ending: str = "terminated") -> None:
        super().__init__([lambda: Counter(ends_at, ending)] * num_envs, autoreset_mode=self.mode)

    def close_extras(self, **kwargs: Any) -> None:
        NativeCounters.times_closed += 1
        super().close_extras(**kwargs)


class SameStepCounters(NativeCounters):
    mode = AutoresetMode.SAME_STEP


class DisabledCounters(NativeCounters):
    """Returns nonsense for the environments that a masked reset leaves alone, as it may."""

    mode = AutoresetMode.DISABLED

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = options["reset_mask"] if options else np.ones(self.num_envs, dtype=np.bool_)
        observations, info = super().reset(seed=seed, options=options)
        return np.where(mask[:, np.newaxis], observations, 99.0), info


class AskedCounters(SyncVectorEnv):
    """A native vector form that lets its user choose the mode."""

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        super().__init__([Counter] * num_envs, autoreset_mode=autoreset_mode)


class NativeInfo(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A native vector form without an end, which keeps one info for all environments; pays for every step."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self, num_envs: int, infos: Sequence[dict[str, Any]], sizes: Sequence[int] = (3,), ends: Sequence[int] = ()
    ) -> None:
        self.num_envs, self._infos, self._count, self._ends = num_envs, infos, 0, ends
        self.single_observation_space = spaces.Box(0.0, 1e6, (1,))
        self.single_action_space = spaces.MultiDiscrete(sizes) if len(sizes) > 1 else spaces.Discrete(sizes[0])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._count = 0
        return np.zeros((self.num_envs, 1), dtype=np.float32), self._infos[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._count += 1
        ends, never = np.full(self.num_envs, self._count in self._ends), np.zeros(self.num_envs, dtype=np.bool_)
        info = self._infos[self._count % len(self._infos)]
        return np.full((self.num_envs, 1), self._count, dtype=np.float32), np.full(self.num_envs, 5.0), ends, never, info


class Times(gymnasium.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: gymnasium.Env[Any, Any], factor: float) -> None:
        super().__init__(env)
        self._factor = factor

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.asarray(observation * self._factor, dtype=np.float32)


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


@pytest.fixture(name="fixed")
def _fixed() -> Iterator[str]:
    with registered("FixedForTests-v0", entry_point=Fixed) as environment_id:
        yield environment_id


def make(environment_id: str, environments: int = 1, *, hosting: Hosting = Hosting(), **kwargs: Any) -> VectorEnvironment:  # noqa: B008
    return VectorEnvironment(EnvironmentConfig(environment_id=environment_id, kwargs=kwargs), environments, hosting=hosting)


def play(environment: VectorEnvironment, *actions: Any) -> list[Transition]:
    return [environment.step(np.array(action)) for action in actions]


def listed(observations: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in observations.items()}


# --- rows: Counter ends at 3, and episode 1 by truncation. An observation is [episode, count, action].

APART = [  # a reset is a row of its own
    ([0, 1, 1], False, 11.0, False, []),
    ([0, 2, 1], False, 21.0, False, []),
    ([0, 3, 1], False, 31.0, True, [(63.0, 3)]),
    ([1, 0, -1], True, 0.0, False, []),
    ([1, 1, 1], False, 11.0, False, []),
    ([1, 2, 1], False, 21.0, False, []),
    ([1, 3, 1], False, 31.0, False, [(63.0, 3)]),
    ([2, 0, -1], True, 0.0, False, []),
    ([2, 1, 1], False, 11.0, False, []),
]
AT_ONCE = [
    ([0, 1, 1], False, 11.0, False, []),
    ([0, 2, 1], False, 21.0, False, []),
    ([1, 0, -1], True, 31.0, True, [(63.0, 3)]),
    ([1, 1, 1], False, 11.0, False, []),
    ([1, 2, 1], False, 21.0, False, []),
    ([2, 0, -1], True, 31.0, False, [(63.0, 3)]),
    ([2, 1, 1], False, 11.0, False, []),
]


@pytest.mark.parametrize(
    ("registration", "vectorization", "expected"),
    [
        ({}, "sync", APART),
        ({}, "async", APART),
        ({"entry_point": None, "vector_entry_point": NativeCounters}, "native", APART),
        ({"entry_point": None, "vector_entry_point": SameStepCounters}, "auto", AT_ONCE),
        ({"entry_point": None, "vector_entry_point": DisabledCounters}, "auto", AT_ONCE),
    ],
    ids=["sync", "async", "native", "same-step", "disabled"],
)
def test_every_vector_form_and_autoreset_mode_gives_the_rows_of_the_convention(
    registration: dict[str, Any], vectorization: Any, expected: list[Any]
) -> None:
    with registered(**registration) as counter:
        environment = make(counter, 1, hosting=Hosting(vectorization=vectorization), ending="alternating")
    try:
        # A fork would inherit the threads of torch and of a channel.
        processes = getattr(environment._envs, "processes", [])
        assert [process._start_method for process in processes] == (["spawn"] if vectorization == "async" else [])
        assert environment.reset(0)[OBSERVATION].tolist() == [[0, 0, -1]]
        rows = []
        for _ in expected:
            row = environment.step(np.array([1]))
            episodes = [(one.episode_return, one.length) for one in row.episodes]
            assert row.ended.tolist() == [0] * len(episodes)
            assert (row.rewards.dtype, row.terminated.dtype, row.is_first.dtype) == (np.float32, np.bool_, np.bool_)
            rows.append((row.observations[OBSERVATION][0].tolist(), row.is_first[0], row.rewards[0], row.terminated[0], episodes))
        assert rows == expected
    finally:
        environment.close()


@pytest.mark.parametrize(
    ("registration", "second_is_first", "last_episode"),
    [
        ({}, [False, True, True], (12.0, 1)),
        ({"entry_point": None, "vector_entry_point": SameStepCounters}, [False, False, False], (32.0, 2)),
        ({"entry_point": None, "vector_entry_point": DisabledCounters}, [False, False, False], (32.0, 2)),
    ],
    ids=["next-step", "same-step", "disabled"],
)
def test_environments_end_and_restart_apart_from_each_other(
    registration: dict[str, Any], second_is_first: list[bool], last_episode: tuple[float, int]
) -> None:
    with registered(**registration) as counter:
        environment = make(counter, 3)
    environment.reset(0)
    first = environment.step(np.array([0, STOP, STOP]))
    counts = first.observations[OBSERVATION][:, 1].tolist()
    second, third = play(environment, [1, 0, 0], [1, STOP, 1])
    environment.close()
    assert counts[0] == 1
    assert [transition.ended.tolist() for transition in (first, second, third)] == [[1, 2], [], [0, 1]]
    assert second.is_first.tolist() == second_is_first
    assert [(one.episode_return, one.length) for one in first.episodes] == [(12.0, 1), (12.0, 1)]
    # Environment 0 went on from its first step.
    assert [(one.episode_return, one.length) for one in third.episodes] == [(62.0, 3), last_episode]


def test_cartpole_restarts_one_step_after_an_episode_ends() -> None:
    environment = make("CartPole-v1", 4)
    environment.reset(0)
    push, ended, seen = np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.bool_), 0
    for _ in range(40):
        transition = environment.step(push)
        assert transition.is_first.tolist() == ended.tolist()
        # A pole that was just put up again is within 0.05 of upright; one that fell is beyond 12 degrees.
        pole = np.abs(transition.observations[OBSERVATION][:, 2])
        assert (pole[ended] <= 0.05).all()
        assert (transition.rewards == ~ended).all()
        ended = np.zeros(4, dtype=np.bool_)
        ended[transition.ended] = True
        assert (pole[ended] > 0.2).all()
        seen += len(transition.ended)
    assert seen >= 4
    environment.close()


def test_a_time_limit_of_the_registration_is_not_termination() -> None:
    with registered(max_episode_steps=2) as counter:
        environment = make(counter)
    environment.reset(0)
    transitions = play(environment, [1], [1], [1])
    assert [bool(transition.terminated[0]) for transition in transitions] == [False, False, False]
    assert [transition.ended.tolist() for transition in transitions] == [[], [0], []]


def test_a_reset_forgets_the_episodes_under_way(counter: str) -> None:
    environment = make(counter, 2)
    environment.reset(0)
    play(environment, [0, STOP])
    environment.reset(0)
    first, _, third = play(environment, [0, 0], [0, 0], [0, 0])
    assert first.is_first.tolist() == [False, False]
    assert [(one.episode_return, one.length) for one in third.episodes] == [(60.0, 3), (60.0, 3)]


def test_later_steps_leave_earlier_transitions_as_they_were(counter: str) -> None:
    environment = make(counter, 2)
    environment.reset(0)
    (transition,) = play(environment, [STOP, 0])
    before = [array.copy() for array in (transition.is_first, transition.rewards, transition.terminated, transition.ended)]
    play(environment, [0, 0], [0, STOP], [0, 0])
    after = [transition.is_first, transition.rewards, transition.terminated, transition.ended]
    assert [array.tolist() for array in after] == [array.tolist() for array in before]


def test_a_reset_pays_nothing_whatever_the_vector_form_says() -> None:
    with registered(entry_point=None, vector_entry_point=NativeInfo) as native:
        environment = make(native, 2, infos=({},), ends=(1,))
    environment.reset(0)
    transitions = play(environment, [0, 0], [0, 0], [0, 0])
    assert [transition.rewards.tolist() for transition in transitions] == [[5.0, 5.0], [0.0, 0.0], [5.0, 5.0]]


def test_seeds_of_more_than_31_bits_are_taken() -> None:
    environment = make("MinAtar/Breakout-v1", 2)
    ones = environment.reset(2**63 + 12345)[OBSERVATION].copy()
    assert (environment.reset(2**63 + 12345)[OBSERVATION] == ones).all()


# --- which vector form


@pytest.mark.parametrize(
    ("registration", "config", "vectorization", "expected", "closed"),
    [
        ({"vector_entry_point": CartPoleVectorEnv}, {}, "auto", CartPoleVectorEnv, 0),
        ({"vector_entry_point": NativeCounters}, {}, "sync", SyncVectorEnv, 0),
        ({"vector_entry_point": NativeCounters}, {}, "auto", NativeCounters, 0),
        ({"vector_entry_point": SameStepCounters}, {}, "auto", SyncVectorEnv, 1),
        ({"vector_entry_point": SameStepCounters}, {}, "native", SameStepCounters, 0),
        ({"vector_entry_point": NativeCounters}, {"kwargs": {"start": 1}}, "auto", SyncVectorEnv, 0),
        ({"vector_entry_point": NativeCounters}, {"wrappers": (("ClipReward", {"max_reward": 1}),)}, "auto", SyncVectorEnv, 0),
        ({"vector_entry_point": AskedCounters}, {}, "native", AskedCounters, 0),
        ({}, {}, "auto", SyncVectorEnv, 0),
    ],
    ids=str,
)
def test_the_native_form_is_taken_where_it_fits(
    registration: dict[str, Any], config: dict[str, Any], vectorization: Any, expected: type, closed: int
) -> None:
    NativeCounters.times_closed = 0
    with registered(**registration) as counter:
        hosting = Hosting(vectorization=vectorization)
        environment = VectorEnvironment(EnvironmentConfig(environment_id=counter, **config), 2, hosting=hosting)
    assert type(environment._envs.unwrapped) is expected
    assert NativeCounters.times_closed == closed
    if expected is AskedCounters:
        assert environment._envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize(
    ("registration", "config"),
    [({}, {}), ({"vector_entry_point": NativeCounters}, {"wrappers": (("ClipReward", {"max_reward": 1}),)})],
    ids=["it has none", "wrappers"],
)
def test_a_native_form_that_cannot_be_had_is_a_config_error(registration: dict[str, Any], config: dict[str, Any]) -> None:
    with registered(**registration) as counter, pytest.raises(ConfigError, match="vectorization"):
        VectorEnvironment(EnvironmentConfig(environment_id=counter, **config), 2, hosting=Hosting(vectorization="native"))


@pytest.mark.filterwarnings("ignore:.*AutoresetMode")
def test_a_vector_form_that_does_not_say_how_it_restarts_is_refused() -> None:
    class Silent(NativeInfo):
        metadata: ClassVar[dict[str, Any]] = {}

    with registered(entry_point=None, vector_entry_point=Silent) as native, pytest.raises(ConfigError, match="autoreset_mode"):
        make(native, infos=({},))


# --- spaces

F32, I64, U8, B = (np.dtype(name) for name in ("float32", "int64", "uint8", "bool"))
BOX, DISCRETE = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)
NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (2, 2), np.uint8),
        "pair": spaces.Tuple((spaces.Discrete(3, start=5), spaces.Dict({"flags": spaces.MultiBinary(2)}))),
    }
)


@pytest.mark.parametrize(
    ("space", "value", "entries", "shown"),
    [
        (spaces.Box(-9, 9, (2,), np.float64), np.array([1.5, 2]), {OBSERVATION: ((2,), F32, ())}, {OBSERVATION: [1.5, 2]}),
        (spaces.Box(-9, 9, (), np.float32), np.float32(3), {OBSERVATION: ((), F32, ())}, {OBSERVATION: 3}),
        (
            spaces.Box(-9, 9, (1, 2), np.int16),
            np.array([[7, 8]], np.int16),
            {OBSERVATION: ((1, 2), F32, ())},
            {OBSERVATION: [[7, 8]]},
        ),
        (spaces.Box(0, 1, (2,), np.bool_), np.array([True, False]), {OBSERVATION: ((2,), B, ())}, {OBSERVATION: [True, False]}),
        (spaces.Discrete(4, start=-1), np.int64(2), {OBSERVATION: ((), I64, (4,))}, {OBSERVATION: 3}),
        (
            spaces.MultiDiscrete([[2, 3]], start=[[1, 4]]),
            np.array([[2, 4]]),
            {OBSERVATION: ((1, 2), I64, (2, 3))},
            {OBSERVATION: [[1, 0]]},
        ),
        (spaces.MultiBinary(2), np.array([1, 0], np.int8), {OBSERVATION: ((2,), B, ())}, {OBSERVATION: [True, False]}),
        (
            NESTED,
            {"image": np.full((2, 2), 200, np.uint8), "pair": (np.int64(7), {"flags": np.array([0, 1], np.int8)})},
            {"image": ((2, 2), U8, ()), "pair.0": ((), I64, (3,)), "pair.1.flags": ((2,), B, ())},
            {"image": [[200, 200], [200, 200]], "pair.0": 2, "pair.1.flags": [False, True]},
        ),
    ],
    ids=str,
)
def test_observations_of_every_supported_space_become_named_arrays(
    fixed: str, space: spaces.Space[Any], value: Any, entries: dict[str, Any], shown: dict[str, Any]
) -> None:
    environment = make(fixed, 2, observation=space, action=DISCRETE, value=value)
    assert environment.spec.observations == {
        name: EntrySpec(shape=shape, dtype=dtype, categories=categories) for name, (shape, dtype, categories) in entries.items()
    }
    for observations in (environment.reset(0), environment.step(np.zeros(2, np.int64)).observations):
        assert listed(observations) == {name: [one, one] for name, one in shown.items()}
        assert {name: array.dtype for name, array in observations.items()} == {name: entry[1] for name, entry in entries.items()}


REALS = spaces.Box(np.array([-2, 0, -np.inf, -np.inf], np.float32), np.array([4, 1e-3, 5, np.inf], np.float32))


@pytest.mark.parametrize(
    ("space", "spec", "action", "given"),
    [
        (spaces.Discrete(3, start=5), ActionSpec(sizes=(3,), single=True), 2, 7),
        (spaces.MultiDiscrete([2, 3], start=[0, 4]), ActionSpec(sizes=(2, 3)), [1, 2], [1, 6]),
        (spaces.MultiDiscrete([[2], [3]]), ActionSpec(sizes=(2, 3)), [1, 2], [[1], [2]]),
        (spaces.MultiBinary(2), ActionSpec(sizes=(2, 2)), [1, 0], [1, 0]),
        (REALS, ActionSpec(dimensions=4), [0.5, 0.0, 3.0, 77.0], [2.5, 5e-4, 3.0, 77.0]),
        (REALS, ActionSpec(dimensions=4), [-9.0, 9.0, 9.0, -9.0], [-2.0, 1e-3, 5.0, -9.0]),
        (spaces.Box(-3e38, 3e38, (), np.float32), ActionSpec(dimensions=1), [0.5], 1.5e38),
        (spaces.Box(0, 2, (1, 2), np.float64), ActionSpec(dimensions=2), [0.0, 0.5], [[1.0, 1.5]]),
    ],
    ids=str,
)
def test_actions_arrive_in_the_form_of_the_space(
    fixed: str, space: spaces.Space[Any], spec: ActionSpec, action: Any, given: Any
) -> None:
    environment = make(fixed, 1, observation=BOX, action=space, value=np.zeros(3, np.float32))
    environment.reset(0)
    environment.step(np.array([action], dtype=spec.dtype))
    assert environment.spec.actions == spec
    np.testing.assert_allclose(Fixed.last, np.asarray(given, space.dtype), rtol=1e-6, strict=True)


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Text(4), DISCRETE, "observations Text"),
        (spaces.Dict({"a": BOX, "b": spaces.Sequence(BOX)}), DISCRETE, "observations Sequence"),
        (spaces.Dict({"a.b": BOX, "a": spaces.Dict({"b": BOX})}), DISCRETE, "entry 'a.b'"),
        (spaces.Dict({"action_mask": spaces.MultiBinary(3), "a": BOX}), DISCRETE, "entry 'action_mask'"),
        (spaces.Dict({"action_mask": spaces.MultiBinary(3), "a": BOX}), BOX, "entry 'action_mask'"),
        (
            spaces.Dict({"action_mask": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiBinary(3))), "a": BOX}),
            spaces.MultiDiscrete([2, 3]),
            "entry 'action_mask.0'",
        ),
        (spaces.Dict({"task": BOX}), DISCRETE, "entry 'task'"),
        (spaces.Dict({"a": BOX, "last_reward": spaces.Box(-9, 9, (1,))}), DISCRETE, "entry 'last_reward'"),
        (spaces.Dict({"a": BOX, "last_action": DISCRETE}), DISCRETE, "entry 'last_action'"),
        (spaces.Dict({"a": BOX, "b": spaces.Box(0, 1, (5, 0))}), DISCRETE, "entry 'b'"),
        (spaces.Box(0, 1, (1,) * 7), DISCRETE, "entry 'observation'"),
        (BOX, spaces.MultiDiscrete([]), "actions MultiDiscrete"),
        (BOX, spaces.Box(0, 9, (2,), np.int64), "actions Box"),
        (BOX, spaces.Tuple((DISCRETE, DISCRETE)), "actions Tuple"),
    ],
    ids=str,
)
def test_a_space_that_is_not_supported_is_named_and_its_environments_closed(
    fixed: str, observation: spaces.Space[Any], action: spaces.Space[Any], named: str
) -> None:
    Fixed.times_closed = 0
    with pytest.raises(UnsupportedSpace, match=f"{fixed} has .*{named}.*; supported: ") as raised:
        make(fixed, 2, observation=observation, action=action)
    assert "MultiDiscrete, MultiBinary" in str(raised.value)
    assert Fixed.times_closed == 2


# --- action masks

TRUE3 = [True] * 3
INFO_MASK = {"action_mask": np.array([[1, 0, 1], [0, 1, 1]])}


@pytest.mark.parametrize(
    ("kwargs", "shown"),
    [
        (
            {
                "entry_point": Fixed,
                "observation": spaces.Dict({"a": BOX, "action_mask": spaces.Box(0, 1, (3,), np.int8)}),
                "action": spaces.Discrete(3, start=1),
                "value": {"a": np.zeros(3, np.float32), "action_mask": np.array([1, 0, 1], np.int8)},
            },
            [[[True, False, True]] * 2] * 3,
        ),
        (
            {
                "entry_point": Fixed,
                "observation": BOX,
                "action": spaces.Discrete(3),
                "value": np.zeros(3, np.float32),
                "infos": ({"action_mask": np.array([0, 0, 1], np.int8)}, {}, {"action_mask": [1, 1, 0]}),
            },
            [[[False, False, True]] * 2, [TRUE3] * 2, [[True, True, False]] * 2],
        ),
        (
            {
                "entry_point": Fixed,
                "observation": BOX,
                "action": spaces.MultiDiscrete([2, 3]),
                "value": np.zeros(3, np.float32),
                "infos": ({"action_mask": (np.array([1, 0]), np.array([0, 1, 1]))},),
            },
            [[[True, False, False, True, True]] * 2] * 3,
        ),
        (
            {"vector_entry_point": NativeInfo, "infos": (INFO_MASK, INFO_MASK | {"_action_mask": np.array([False, True])}, {})},
            [[[True, False, True], [False, True, True]], [TRUE3, [False, True, True]], [TRUE3, TRUE3]],
        ),
        (
            {
                "vector_entry_point": NativeInfo,
                "sizes": (2, 1),
                "infos": ({"action_mask": (np.array([[1, 0], [0, 1]]), np.array([[1], [1]]))},),
            },
            [[[True, False, True], [False, True, True]]] * 3,
        ),
    ],
    ids=["dict", "info", "info of several choices", "native", "native of several choices"],
)
def test_action_masks_become_an_entry_wherever_they_are(kwargs: dict[str, Any], shown: list[Any]) -> None:
    points = {name: kwargs.pop(name, None) for name in ("entry_point", "vector_entry_point")}
    with registered("MaskedForTests-v0", **points) as masked:
        environment = make(masked, 2, **kwargs)
    assert environment.spec.observations["action_mask"] == EntrySpec(shape=(len(shown[0][0]),), dtype=B)
    action = np.zeros((2, *environment.spec.actions.shape), np.int64)
    seen = [environment.reset(0)["action_mask"].tolist()]
    seen += [environment.step(action).observations["action_mask"].tolist() for _ in range(2)]
    assert seen == shown


def test_a_mask_of_another_width_than_the_actions_is_a_config_error() -> None:
    with (
        registered(entry_point=None, vector_entry_point=NativeInfo) as native,
        pytest.raises(ConfigError, match="expected 4 numbers"),
    ):
        make(native, 2, infos=(INFO_MASK,), sizes=(4,))


def test_a_list_of_another_width_beside_a_mask_that_is_missing_is_a_config_error() -> None:
    masks = np.array([None, None], dtype=object)
    masks[1] = [1, 0]
    with pytest.raises(ConfigError, match=r"expected 3 numbers, .*, came \(2,\)"):
        info_masks({"action_mask": masks}, 2, 3)


def test_masks_that_only_steps_have_are_a_config_error(fixed: str) -> None:
    infos = ({}, {"action_mask": np.array([1, 0, 1], np.int8)})
    environment = make(fixed, 2, observation=BOX, action=spaces.Discrete(3), value=np.zeros(3, np.float32), infos=infos)
    environment.reset(0)
    with pytest.raises(ConfigError, match="expected none in info, as in that of the first reset"):
        environment.step(np.zeros(2, np.int64))


# --- last action and reward


def test_the_last_action_and_reward_are_those_of_the_transition_that_led_there(counter: str) -> None:
    config = EnvironmentConfig(environment_id=counter)
    environment = VectorEnvironment(config, 2, last_action_reward=True)
    assert environment.spec.observations["last_action"] == EntrySpec(shape=(), dtype=I64, categories=(4,))
    assert environment.spec.observations["last_reward"] == EntrySpec(shape=(), dtype=F32)
    seen = [environment.reset(0)]
    seen = [{name: seen[0][name].tolist() for name in ("last_action", "last_reward")}]
    for action in ([1, STOP], [0, 1], [1, 1]):
        observations = environment.step(np.array(action)).observations
        seen.append({name: observations[name].tolist() for name in ("last_action", "last_reward")})
    assert seen == [
        {"last_action": [0, 0], "last_reward": [0.0, 0.0]},
        {"last_action": [2, 3], "last_reward": [11.0, 12.0]},
        {"last_action": [1, 0], "last_reward": [20.0, 0.0]},  # environment 1 was reset
        {"last_action": [2, 2], "last_reward": [31.0, 11.0]},
    ]
    assert {name: environment.reset(0)[name].tolist() for name in seen[0]} == seen[0]


def test_the_last_action_in_real_numbers_is_the_network_s_own(fixed: str) -> None:
    kwargs = {"observation": BOX, "action": REALS, "value": np.zeros(3, np.float32)}
    environment = VectorEnvironment(EnvironmentConfig(environment_id=fixed, kwargs=kwargs), 1, last_action_reward=True)
    environment.reset(0)
    observations = environment.step(np.array([[9.0, 0.5, 0.0, -1.0]], dtype=np.float32)).observations
    assert environment.spec.observations["last_action"] == EntrySpec(shape=(4,), dtype=F32)
    assert observations["last_action"].tolist() == [[9.0, 0.5, 0.0, -1.0]]
    assert observations["last_action"].dtype == np.float32


# --- several environments


def fixed_config(fixed: str, observation: spaces.Space[Any], action: spaces.Space[Any], value: Any = None) -> EnvironmentConfig:
    return EnvironmentConfig(environment_id=fixed, kwargs={"observation": observation, "action": action, "value": value})


def agent(*environments: EnvironmentConfig, **network: Any) -> AgentConfig:
    return AgentConfig(environments=environments, network=NetworkConfig(**network))


def test_environments_of_one_agent_are_padded_to_each_other(fixed: str) -> None:
    small = spaces.Dict({"a": spaces.Box(0, 9, (2, 3)), "only here": spaces.Discrete(2)})
    large = spaces.Dict({"a": spaces.Box(0, 9, (3, 1))})
    one = fixed_config(fixed, small, spaces.Discrete(2), {"a": np.ones((2, 3), np.float32), "only here": np.int64(1)})
    other = fixed_config(fixed, large, spaces.Discrete(3, start=1), {"a": np.full((3, 1), 2, np.float32)})
    spec = agent_spec(agent(one, other, last_action_reward=True))
    assert spec == EnvironmentSpec(
        observations={
            "a": EntrySpec(shape=(3, 3), dtype=F32),
            "only here": EntrySpec(shape=(), dtype=I64, categories=(2,)),
            "action_mask": EntrySpec(shape=(3,), dtype=B),
            "task": EntrySpec(shape=(), dtype=U8, categories=(2,)),
            "last_action": EntrySpec(shape=(), dtype=I64, categories=(4,)),
            "last_reward": EntrySpec(shape=(), dtype=F32),
        },
        actions=ActionSpec(sizes=(3,), single=True),
    )
    shown = []
    for task, config in enumerate((one, other)):
        environment = VectorEnvironment(config, 1, spec=spec, task=task, last_action_reward=True)
        assert environment.spec == spec
        environment.reset(0)
        observations = environment.step(np.array([1])).observations
        assert {name: array.dtype for name, array in observations.items()} == {
            name: entry.dtype for name, entry in spec.observations.items()
        }
        shown.append({name: array[0].tolist() for name, array in observations.items()})
    last = {"last_action": 2, "last_reward": 2.5}
    assert shown == [
        {"a": [[1] * 3, [1] * 3, [0] * 3], "only here": 1, "action_mask": [True, True, False], "task": 0, **last},
        {"a": [[2, 0, 0]] * 3, "only here": 0, "action_mask": TRUE3, "task": 1, **last},
    ]
    assert int(Fixed.last) == 2


MASKED = spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(2)})


def test_masks_that_allow_nothing_still_forbid_what_a_task_does_not_have(fixed: str) -> None:
    none = {"observation": np.zeros(3, np.float32), "action_mask": np.zeros(2, np.int8)}
    one, other = fixed_config(fixed, MASKED, DISCRETE, none), fixed_config(fixed, BOX, spaces.Discrete(4))
    environment = VectorEnvironment(one, 1, spec=agent_spec(agent(one, other)))
    assert environment.reset(0)["action_mask"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("observation", "action", "entries"),
    [
        (BOX, DISCRETE, {"observation", "task"}),
        (MASKED, DISCRETE, {"observation", "task", "action_mask"}),
        (BOX, spaces.Discrete(5), {"observation", "task", "action_mask"}),
    ],
    ids=["alike", "masks", "sizes"],
)
def test_an_agent_of_several_tasks_has_masks_where_one_needs_them(
    fixed: str, observation: spaces.Space[Any], action: spaces.Space[Any], entries: set[str]
) -> None:
    spec = agent_spec(agent(fixed_config(fixed, BOX, DISCRETE), fixed_config(fixed, observation, action)))
    assert spec.observations.keys() == entries


def test_an_agent_of_one_task_has_the_environment_s_own_spec(fixed: str) -> None:
    config = fixed_config(fixed, BOX, DISCRETE)
    assert agent_spec(agent(config)) == VectorEnvironment(config, 1).spec
    assert agent_spec(agent(config, last_action_reward=True)) == VectorEnvironment(config, 1, last_action_reward=True).spec


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Box(0, 1, (3, 1)), DISCRETE, "share the entry 'observation'"),
        (spaces.Box(0, 1, (3,), np.uint8), DISCRETE, "share the entry 'observation'"),
        (spaces.MultiDiscrete([2, 2, 2]), DISCRETE, "share the entry 'observation'"),
        (BOX, spaces.MultiDiscrete([2]), "no actions in common"),
        (BOX, BOX, "no actions in common"),
    ],
    ids=str,
)
def test_environments_with_nothing_in_common_are_both_named(
    fixed: str, observation: spaces.Space[Any], action: spaces.Space[Any], named: str
) -> None:
    with registered("OtherForTests-v0", entry_point=Fixed) as other, pytest.raises(ConfigError, match=named) as raised:
        agent_spec(agent(fixed_config(fixed, BOX, DISCRETE), fixed_config(other, observation, action)))
    assert fixed in str(raised.value)
    assert other in str(raised.value)


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Box(0, 1, (4,)), DISCRETE),
        (spaces.Box(0, 1, (3,), np.uint8), DISCRETE),
        (spaces.Dict({"other": BOX}), DISCRETE),
        (MASKED, DISCRETE),
        (BOX, spaces.Discrete(3)),
        (BOX, spaces.MultiDiscrete([2])),
    ],
    ids=str,
)
def test_an_environment_that_does_not_fit_the_run_s_spec_is_a_config_error(
    fixed: str, observation: spaces.Space[Any], action: spaces.Space[Any]
) -> None:
    spec = agent_spec(agent(fixed_config(fixed, BOX, DISCRETE)))
    with pytest.raises(ConfigError, match=f"{fixed} was expected to have"):
        VectorEnvironment(fixed_config(fixed, observation, action), 1, spec=spec)


# --- lives


@pytest.mark.parametrize(
    ("terminates", "expected"), [(True, [True, True, False, False, True]), (False, [False] * 5)], ids=["terminates", "does not"]
)
def test_a_lost_life_is_termination_without_an_end(terminates: bool, expected: list[bool]) -> None:
    with registered() as counter:
        kwargs = {"lives": 5, "ending": "truncated"}
        environment = VectorEnvironment(
            EnvironmentConfig(environment_id=counter, kwargs=kwargs, life_loss_terminates=terminates), 1
        )
    environment.reset(0)
    transitions = play(environment, *[[1]] * 5)
    # A life a step; but the third step ends the episode, by truncation, and the fourth is the reset.
    assert [bool(transition.terminated[0]) for transition in transitions] == expected
    assert [bool(transition.is_first[0]) for transition in transitions] == [False, False, False, True, False]
    assert [one.episode_return for transition in transitions for one in transition.episodes] == [63.0]


def test_lives_are_those_of_each_environment() -> None:
    infos = [
        {"lives": np.array([3, 3])},
        {"lives": np.array([3, 2])},
        {"lives": np.array([0, 0]), "_lives": np.array([False, False])},
        {"lives": np.array([2, 2])},
    ]
    with registered(entry_point=None, vector_entry_point=NativeInfo) as native:
        environment = make(native, 2, infos=infos)
    environment.reset(0)
    lost = [transition.terminated.tolist() for transition in play(environment, *[[0, 0]] * 3)]
    assert lost == [[False, True], [False, False], [True, False]]


def test_a_life_lost_in_breakout_terminates_and_the_game_goes_on() -> None:
    environment = make("ALE/Breakout-v5", 1)
    environment.reset(3)
    lost, length = 0, 0
    while not (transition := environment.step(np.array([1]))).episodes:  # always fires, never moves
        assert not transition.is_first[0]
        lost, length = lost + int(transition.terminated[0]), length + 1
    assert lost == 4
    assert transition.terminated[0]
    assert transition.episodes[0].length == length + 1
    environment.close()


# --- families


def frames(environment: VectorEnvironment, steps: int) -> list[int]:
    """Returns how many frames of the emulator each step took, by the emulator's own counter; an action of 0 each time."""
    envs, counts = environment._envs, []
    step = envs.step

    def counting(actions: Any) -> Any:
        result = step(actions)
        counts.append(int(result[4]["frame_number"][0]))
        return result

    envs.step = counting  # type: ignore[method-assign]
    environment.reset(0)
    play(environment, *[[0]] * (steps + 1))
    return np.diff(counts).tolist()


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
@pytest.mark.parametrize(("kwargs", "skipped"), [({}, 4), ({"frameskip": 2, "noop_max": 0, "num_threads": 1}, 2)], ids=str)
def test_atari_shows_single_grey_frames_and_skips_once(vectorization: Any, kwargs: dict[str, Any], skipped: int) -> None:
    environment = make("ALE/Pong-v5", 2, hosting=Hosting(vectorization=vectorization), **kwargs)
    assert environment.spec.observations == {OBSERVATION: EntrySpec(shape=(84, 84), dtype=U8)}
    assert environment.spec.actions == ActionSpec(sizes=(6,), single=True)
    assert environment.reset(0)[OBSERVATION].shape == (2, 84, 84)
    environment.close()
    environment = make("ALE/Pong-v5", 1, hosting=Hosting(vectorization=vectorization), **kwargs)
    assert frames(environment, 5) == [skipped] * 5
    environment.close()


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
@pytest.mark.parametrize(
    "name", ["stack_num", "episodic_life", "life_loss_info", "batch_size", "autoreset_mode", "reward_clipping"]
)
def test_arguments_that_would_break_an_atari_unroll_are_refused(vectorization: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make("ALE/Pong-v5", 1, hosting=Hosting(vectorization=vectorization), **{name: 1})


def test_arguments_of_an_atari_game_whose_preprocessing_is_the_user_s_own_are_refused() -> None:
    own = (("AtariPreprocessing", {"frame_skip": 2}),)
    config = EnvironmentConfig(environment_id="ALE/Pong-v5", kwargs={"img_width": 42, "noop_max": 0}, wrappers=own)
    with pytest.raises(ConfigError, match="expected img_width, noop_max among the arguments of the wrapper AtariPreprocessing"):
        VectorEnvironment(config, 1)


def test_atari_has_no_sticky_actions_and_true_rewards_on_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import ale_py.vector_env

    given: list[dict[str, Any]] = []
    constructor = ale_py.ALEVectorInterface
    monkeypatch.setattr(ale_py, "ALEVectorInterface", lambda **kwargs: given.append(kwargs) or constructor(**kwargs))
    make("ALE/Pong-v5", 1).close()
    make("ALE/Pong-v5", 1, repeat_action_probability=0.25, num_threads=2).close()
    names = ("repeat_action_probability", "num_threads", "reward_clipping", "frame_skip", "noop_max", "use_fire_reset")
    assert [tuple(arguments[name] for name in names) for arguments in given] == [
        (0.0, 1, False, 4, 30, False),
        (0.25, 2, False, 4, 30, False),
    ]


def test_minatar_is_there_by_name() -> None:
    environment = make("MinAtar/Breakout-v1", 2)
    assert environment.spec.observations == {OBSERVATION: EntrySpec(shape=(10, 10, 4), dtype=B)}
    assert environment.spec.actions == ActionSpec(sizes=(3,), single=True)


@pytest.mark.parametrize(
    ("environment_id", "package", "extra"), [("ALE/Pong-v5", "ale_py", "atari"), ("MinAtar/Missing-v9", "minatar.gym", "minatar")]
)
def test_a_family_whose_package_is_missing_names_the_extra(
    environment_id: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{environment_id}.*pip install 'impala-grpc\[{extra}\]'"):
        make(environment_id)


# --- modules and wrappers


@pytest.fixture(name="stranger")
def _stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "module_of_a_stranger.py").write_text(
        "import gymnasium\nfrom tests.test_environments import Counter, Times\n"
        "gymnasium.register('StrangerForTests-v0', entry_point=Counter, disable_env_checker=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "module_of_a_stranger"
    sys.modules.pop("module_of_a_stranger", None)
    gymnasium.registry.pop("StrangerForTests-v0", None)


@pytest.mark.parametrize(
    ("environment_id", "wrappers"),
    [("{}:StrangerForTests-v0", ()), ("CartPole-v1", (("{}:Times", {"factor": 2.0}),))],
    ids=["environment", "wrapper"],
)
def test_a_module_is_imported_only_where_the_machine_allows_it(stranger: str, environment_id: str, wrappers: Any) -> None:
    config = EnvironmentConfig(
        environment_id=environment_id.format(stranger), wrappers=tuple((name.format(stranger), one) for name, one in wrappers)
    )
    for allowed in ((), ("module_of_another", "module")):
        with pytest.raises(ConfigError, match=f"--allow-module {stranger}"):
            VectorEnvironment(config, 1, hosting=Hosting(allowed_modules=allowed))
    assert stranger not in sys.modules
    VectorEnvironment(config, 1, hosting=Hosting(allowed_modules=(stranger,))).close()
    assert stranger in sys.modules


def test_wrappers_go_around_the_environment_innermost_first(counter: str, stranger: str) -> None:
    wrappers = (("ClipReward", {"max_reward": 15.0}), (f"{stranger}:Times", {"factor": 3.0}), ("FlattenObservation", {}))
    wrappers = (*wrappers, ("FrameStackObservation", {"stack_size": 2}))
    config = EnvironmentConfig(environment_id=counter, wrappers=wrappers)
    environment = VectorEnvironment(config, 1, hosting=Hosting(allowed_modules=(stranger,)))
    environment.reset(0)
    transition = play(environment, [1], [1])[-1]
    assert transition.observations[OBSERVATION].tolist() == [[[0, 3, 3], [0, 6, 3]]]
    assert transition.rewards.tolist() == [15.0]


@pytest.mark.parametrize("name", ["NoSuchWrapper", "RecordVideo", "Autoreset", "HumanRendering", "vector"])
def test_a_wrapper_that_is_none_or_would_not_play_on_is_refused(counter: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"wrappers: .*{name}"):
        VectorEnvironment(EnvironmentConfig(environment_id=counter, wrappers=((name, {}),)), 1)


# --- what cannot be made


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
            make(environment_id, 2, **kwargs)
        assert "\n" not in str(raised.value)
        assert all(name in str(raised.value) for name in kwargs)


@pytest.mark.parametrize(
    "error", [ValueError("no such map"), KeyError("9x9"), AssertionError("gravity"), TypeError("two\nlines")], ids=repr
)
def test_arguments_that_an_environment_refuses_are_a_config_error(error: Exception) -> None:
    def refuse(**_: Any) -> Counter:
        raise error

    with registered(entry_point=refuse) as counter, pytest.raises(ConfigError, match=r"^environment: cannot make .*size") as raised:
        make(counter, 2, size=9)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode"])
def test_arguments_of_the_vector_form_are_not_the_learners_to_choose(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make("CartPole-v1", 1, **{name: None})
