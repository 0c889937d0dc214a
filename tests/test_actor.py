"""The actor: an unroll is exactly what the environments did, chosen by one version of the weights."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from actor_client.actor import Actor
from impala.config import EnvironmentConfig, NetworkConfig
from impala.distributions import Categorical
from impala.environments import OBSERVATION, VectorEnvironment
from impala.environments.vector import Transition
from impala.errors import EnvironmentFault, InvalidMessage
from impala.networks import Network, NetworkOutput, State, build_network
from impala.specs import ACTION_MASK, ActionSpec
from impala.unroll import Unroll, concatenate
from tests.test_environments import STOP, registered

ENVIRONMENTS, LENGTH, ENDS_AT = 4, 6, 3


class StepsSinceFirst(Network):
    """A recurrent network whose state counts the observations of the episode; all actions are equally likely."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.distribution = Categorical((3,), single=True)
        self.weight = nn.Parameter(torch.zeros(3))

    def initial_state(self, environments: int) -> State:
        return {"steps": torch.zeros(environments)}

    def forward(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> NetworkOutput:
        raise NotImplementedError

    def act(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> tuple[Tensor, State]:
        return self.weight.expand(is_first.shape[0], 3), {"steps": state["steps"] * ~is_first + 1.0}


@contextmanager
def counting_actor(*, seed: int = 0, ending: str = "alternating", network: Network | None = None) -> Iterator[Actor]:
    """Yields an actor in counters, whose unrolls are `LENGTH` long; its network is `mlp()` unless given."""
    with registered() as counter:
        config = EnvironmentConfig(environment_id=counter, kwargs={"ends_at": ENDS_AT, "ending": ending})
        environment = VectorEnvironment(config, ENVIRONMENTS)
    actor = Actor(environment, network or mlp(environment), unroll_length=LENGTH, seed=seed)
    try:
        yield actor
    finally:
        environment.close()


def mlp(environment: VectorEnvironment, **fields: Any) -> Network:
    """Returns a network whose policy is far from uniform and differs between observations."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(hidden_sizes=(16,), **fields), environment.spec)
    with torch.no_grad():
        network.get_parameter("policy_head.weight").mul_(100.0)
    return network


def collect(actor: Actor) -> Unroll[np.ndarray]:
    """Returns a copy of the actor's next unroll."""
    return concatenate([actor.collect().unroll])


def replay(actions: list[int], *, ending: str) -> list[tuple[list[int], bool, float, bool]]:
    """Returns what a counter answers to these actions, row by row: x_{t+1}, is_first[t+1], reward, terminated.

    Written apart from `Counter` and from Gymnasium's restarting, from what `impala/unroll.py` says.
    """
    rows: list[tuple[list[int], bool, float, bool]] = []
    episode, count, over = 0, 0, False
    for action in actions:
        if over:
            episode, count, over = episode + 1, 0, False
            rows.append(([episode, 0, -1], True, 0.0, False))
            continue
        count += 1
        over = count == ENDS_AT or action == STOP
        dies = ending == "terminated" or (ending == "alternating" and episode % 2 == 0)
        rows.append(([episode, count, action], False, 10.0 * count + action, over and dies))
    return rows


@pytest.mark.parametrize("ending", ["terminated", "truncated", "alternating"])
def test_an_unroll_is_row_by_row_what_the_environments_did(ending: str) -> None:
    with counting_actor(ending=ending) as actor:
        unrolls = [collect(actor) for _ in range(5)]
    for e in range(ENVIRONMENTS):
        actions = [action for unroll in unrolls for action in unroll.actions[:, e].tolist()]
        rows = iter(replay(actions, ending=ending))
        before, is_first = [0, 0, -1], True
        for unroll in unrolls:
            for t in range(LENGTH):
                assert unroll.observations[OBSERVATION][t, e].tolist() == before
                assert bool(unroll.is_first[t, e]) == is_first
                before, is_first, reward, terminated = next(rows)
                assert (float(unroll.rewards[t, e]), bool(unroll.terminated[t, e])) == (reward, terminated)
            assert unroll.observations[OBSERVATION][LENGTH, e].tolist() == before
            assert bool(unroll.is_first[LENGTH, e]) == is_first


def test_the_last_observation_of_an_unroll_is_the_first_of_the_next() -> None:
    with counting_actor() as actor:
        unrolls = [collect(actor) for _ in range(8)]
    for before, after in pairwise(unrolls):
        np.testing.assert_array_equal(after.observations[OBSERVATION][0], before.observations[OBSERVATION][LENGTH])


def test_whether_it_begins_an_episode_is_carried_over_with_it() -> None:
    with counting_actor() as actor:
        unrolls = [collect(actor) for _ in range(8)]
    for before, after in pairwise(unrolls):
        assert after.is_first[0].tolist() == before.is_first[LENGTH].tolist()
    borders = np.stack([unroll.is_first[0] for unroll in unrolls[1:]])
    assert borders.any()
    assert not borders.all()


def test_the_very_first_observation_begins_an_episode() -> None:
    with counting_actor() as actor:
        assert collect(actor).is_first[0].tolist() == [True] * ENVIRONMENTS


def test_a_time_limit_is_recorded_as_an_end_without_termination() -> None:
    with counting_actor(ending="truncated") as actor:
        unroll = collect(actor)
    assert not unroll.terminated.any()
    assert unroll.is_first[1:].any()


def test_a_termination_is_recorded_on_the_row_before_the_reset() -> None:
    with counting_actor(ending="terminated") as actor:
        unroll = collect(actor)
    assert unroll.terminated.any()
    np.testing.assert_array_equal(unroll.is_first[2:], unroll.terminated[:-1])


class Echo(gymnasium.Env[dict[str, np.ndarray], Any]):
    """Observes its count and the action that it was given; every step allows some options, in turn. Truncates after 4 steps."""

    def __init__(self, action: spaces.Space[Any], options: int = 0) -> None:
        width = int(np.prod(action.shape or ()))
        observation: dict[str, spaces.Space[Any]] = {OBSERVATION: spaces.Box(-9.0, 9.0, (1 + width,))}
        if options:
            observation[ACTION_MASK] = spaces.MultiBinary(options)
        self.observation_space, self.action_space = spaces.Dict(observation), action
        self._options, self._width, self._count = options, width, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._observe(np.zeros(self._width)), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._count += 1
        return self._observe(np.ravel(action)), 1.0, False, self._count == 4, {}

    def _observe(self, action: np.ndarray) -> dict[str, np.ndarray]:
        observation = {OBSERVATION: np.array([self._count, *action], dtype=np.float32)}
        if self._options:
            # Neighbours differ, and of any three options one or two are forbidden.
            observation[ACTION_MASK] = ((np.arange(self._options) + self._count) % 3 > self._count % 2).astype(np.int8)
        return observation


def literal_log_probs(policy: Tensor, actions: Tensor, spec: ActionSpec) -> Tensor:
    """Returns log pi(a|x) by torch's own distributions."""
    if spec.is_continuous:
        mean, log_std = policy.chunk(2, -1)
        return torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    parts = zip(policy.split(spec.sizes, -1), actions.unbind(-1) if not spec.single else (actions,), strict=True)
    return torch.stack([torch.distributions.Categorical(logits=logits).log_prob(chosen) for logits, chosen in parts]).sum(0)


@contextmanager
def echoing_actor(kwargs: dict[str, Any], **network: Any) -> Iterator[tuple[Actor, Network, ActionSpec]]:
    """Yields an actor in echoes, its network and what its actions are."""
    with registered("EchoForTests-v0", entry_point=Echo) as echo:
        environment = VectorEnvironment(EnvironmentConfig(environment_id=echo, kwargs=kwargs), ENVIRONMENTS)
    policy = mlp(environment, **network)
    try:
        yield Actor(environment, policy, unroll_length=LENGTH, seed=0), policy, environment.spec.actions
    finally:
        environment.close()


SPACES: dict[str, dict[str, Any]] = {
    "one choice": {"action": spaces.Discrete(3)},
    "one choice of those allowed": {"action": spaces.Discrete(6), "options": 6},
    "several choices": {"action": spaces.MultiDiscrete([2, 3])},
    "several choices of those allowed": {"action": spaces.MultiDiscrete([3, 6]), "options": 9},
    "switches": {"action": spaces.MultiBinary(3)},
    "real numbers": {"action": spaces.Box(-2.0, 2.0, (2,))},
}


@pytest.mark.parametrize("network", [{}, {"lstm_size": 8}], ids=["feed-forward", "LSTM"])
@pytest.mark.parametrize("space", SPACES)
def test_the_behaviour_log_probs_are_those_of_the_network_on_the_whole_unroll(space: str, network: dict[str, Any]) -> None:
    with echoing_actor(SPACES[space], **network) as (actor, policy, spec):
        unrolls = [collect(actor) for _ in range(3)]
    for unroll in unrolls:
        tensors = unroll.map(torch.from_numpy)
        output = policy(tensors.observations, tensors.is_first, tensors.initial_state)
        expected = literal_log_probs(output.policy[:-1], tensors.actions, spec)
        torch.testing.assert_close(tensors.behaviour_log_probs, expected, rtol=0.0, atol=1e-5)
        assert float(expected.std()) > 0.05


@pytest.mark.parametrize("space", SPACES)
def test_actions_are_recorded_as_drawn_and_reach_the_environments_within_their_bounds(space: str) -> None:
    with echoing_actor(SPACES[space]) as (actor, _, spec):
        unroll = concatenate([actor.collect().unroll])
    drawn, reached = unroll.actions.reshape(LENGTH, ENVIRONMENTS, -1), unroll.observations[OBSERVATION][1:, :, 1:]
    if spec.is_continuous:
        assert (np.abs(drawn) > 1.0).any()
        drawn = 2.0 * np.clip(drawn, -1.0, 1.0)
    acted = ~unroll.is_first[1:]
    np.testing.assert_allclose(reached[acted], drawn[acted], rtol=1e-6)
    assert len(np.unique(drawn[acted])) > 1


@pytest.mark.parametrize("space", [name for name, kwargs in SPACES.items() if "options" in kwargs])
def test_only_actions_that_the_mask_allows_are_taken(space: str) -> None:
    with echoing_actor(SPACES[space]) as (actor, _, spec):
        unrolls = [collect(actor) for _ in range(20)]
    for unroll in unrolls:
        first = np.cumsum([0, *spec.sizes[:-1]])
        chosen = unroll.actions.reshape(LENGTH, ENVIRONMENTS, -1) + first
        assert np.take_along_axis(unroll.observations[ACTION_MASK][:-1], chosen, -1).all()


def test_what_the_network_is_shown_begins_where_tensors_do() -> None:
    # A sum in a matrix product depends on where its numbers begin.
    arrays: list[np.ndarray] = []
    with counting_actor() as first, counting_actor() as second:
        for unroll in (first.collect().unroll, second.collect().unroll):
            arrays += unroll.arrays()
    assert {array.ctypes.data % 64 for array in arrays} == {0}


def test_every_column_carries_the_version_that_was_loaded() -> None:
    with counting_actor() as actor:
        weights = actor._network.state_dict()
        versions = []
        for version in (7, 8):
            actor.load_parameters(version, weights)
            versions.append(collect(actor).parameter_version.tolist())
    assert versions == [[7] * ENVIRONMENTS, [8] * ENVIRONMENTS]


def test_loaded_weights_act_from_the_next_unroll_on() -> None:
    with counting_actor() as actor:
        weights = {name: torch.zeros_like(tensor) for name, tensor in actor._network.state_dict().items()}
        before = collect(actor)
        # Logits of 0 but for action 1, whatever the observation.
        weights["policy_head.bias"][1] = 50.0
        actor.load_parameters(1, weights)
        after = collect(actor)
    assert (before.actions != 1).any()
    assert (after.actions == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_head.bias": torch.zeros(4)}, r"^parameters: expected policy_head\.bias of shape \(3,\), came \(4,\)$"),
        ({"policy_head.bias": None}, r"^parameters: expected policy_head\.bias of shape \(3,\), came None$"),
        ({"extra": torch.zeros(1)}, r"^parameters: expected extra of shape None, came \(1,\)$"),
    ],
)
def test_weights_of_another_network_are_refused_whole(change: dict[str, torch.Tensor | None], message: str) -> None:
    with counting_actor() as actor:
        before = {name: tensor.clone() for name, tensor in actor._network.state_dict().items()}
        weights = {name: tensor + 1.0 for name, tensor in before.items()} | change
        with pytest.raises(InvalidMessage, match=message):
            actor.load_parameters(5, {name: tensor for name, tensor in weights.items() if tensor is not None})
        assert all(torch.equal(tensor, before[name]) for name, tensor in actor._network.state_dict().items())
        assert collect(actor).parameter_version.tolist() == [0] * ENVIRONMENTS


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_nobody_can_learn_from_are_a_fault_of_the_environment(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with counting_actor() as actor:
        real, steps = actor._environment.step, itertools.count()

        def step(actions: np.ndarray) -> Transition:
            transition = real(actions)
            rewards = transition.rewards.copy()
            rewards[1] = value if next(steps) == 2 else rewards[1]
            return replace(transition, rewards=rewards)

        monkeypatch.setattr(actor._environment, "step", step)
        with pytest.raises(EnvironmentFault, match=f"^reward: expected finite values, came {value} from environment 1, step 2 of"):
            actor.collect()


def test_observations_that_nobody_can_learn_from_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with echoing_actor(SPACES["one choice"]) as (actor, _, _):
        real = actor._environment.step

        def step(actions: np.ndarray) -> Transition:
            transition = real(actions)
            broken = {
                name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
                for name, array in transition.observations.items()
            }
            return replace(transition, observations=broken)

        monkeypatch.setattr(actor._environment, "step", step)
        with pytest.raises(EnvironmentFault, match=r": expected finite values, came nan from environment 0, step 1 of an unroll$"):
            actor.collect()


def test_actions_are_drawn_as_often_as_the_policy_says() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    network = StepsSinceFirst()
    with torch.no_grad():
        network.weight.copy_(probabilities.log())
    with counting_actor(network=network) as actor:
        actions = np.stack([collect(actor).actions for _ in range(200)])
    # 4,800 draws: a standard deviation of at most 0.0071.
    frequencies = np.bincount(actions.ravel(), minlength=3) / actions.size
    np.testing.assert_allclose(frequencies, probabilities.numpy(), rtol=0.0, atol=0.03)


def test_steps_draw_their_actions_apart() -> None:
    network = StepsSinceFirst()
    with torch.no_grad():
        network.weight.zero_()
    with counting_actor(network=network) as actor:
        actions = collect(actor).actions
    # Three actions, all alike: that every step of an unroll repeats the one before is next to impossible.
    assert not (actions[1:] == actions[:-1]).all()


def test_environments_draw_their_actions_apart() -> None:
    with counting_actor(network=StepsSinceFirst()) as actor:
        actions = np.concatenate([collect(actor).actions for _ in range(20)])
    # Of two independent fair draws of three, a third agree.
    agree = (actions[:, :1] == actions[:, 1:]).mean()
    assert 0.2 < agree < 0.5


def test_the_same_seed_collects_the_same_unrolls() -> None:
    runs = []
    for _ in range(2):
        with counting_actor(seed=3) as actor:
            runs.append([collect(actor) for _ in range(3)])
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.observations[OBSERVATION], other.observations[OBSERVATION])
        np.testing.assert_array_equal(one.behaviour_log_probs, other.behaviour_log_probs)


def test_another_seed_draws_other_actions() -> None:
    actions = []
    for seed in (3, 4):
        with counting_actor(seed=seed, network=StepsSinceFirst()) as actor:
            actions.append(collect(actor).actions)
    assert (actions[0] != actions[1]).any()


def test_another_seed_starts_the_environments_elsewhere() -> None:
    starts = []
    for seed in (3, 3, 4):
        environment = VectorEnvironment(EnvironmentConfig(environment_id="CartPole-v1"), 2)
        actor = Actor(environment, build_network(NetworkConfig(), environment.spec), unroll_length=1, seed=seed)
        starts.append(collect(actor).observations[OBSERVATION][0].tolist())
        environment.close()
    assert starts[0] == starts[1] != starts[2]


def test_the_random_state_of_torch_is_left_alone() -> None:
    with counting_actor() as actor:
        before = torch.get_rng_state()
        collect(actor)
    assert torch.equal(torch.get_rng_state(), before)


def test_finished_episodes_are_reported_with_the_unroll_in_which_they_ended() -> None:
    with counting_actor() as actor:
        for _ in range(5):
            collected = actor.collect()
            unroll = collected.unroll
            # x_{t+1} has a count of 3 or was reached by STOP, and no reset row has either.
            last = unroll.observations[OBSERVATION][1:]
            ends = (last[..., 1] == ENDS_AT) | (last[..., 2] == STOP)
            assert len(collected.episodes) == int(ends.sum())
            assert sorted(episode.length for episode in collected.episodes) == sorted(last[..., 1][ends].tolist())


def test_an_unroll_carries_the_recurrent_state_before_its_first_observation() -> None:
    with counting_actor(network=StepsSinceFirst()) as actor:
        unrolls = [collect(actor) for _ in range(5)]
    steps = np.zeros(ENVIRONMENTS)
    for unroll in unrolls:
        assert unroll.initial_state["steps"].tolist() == steps.tolist()
        for t in range(LENGTH):
            steps = steps * ~unroll.is_first[t] + 1.0


def test_what_environments_and_inference_take_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)

    def takes(seconds: float, method: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any) -> Any:
            clock.now += seconds
            return method(*args)

        return slowly

    with counting_actor() as actor:
        monkeypatch.setattr("actor_client.actor.time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(actor._environment, "step", takes(1.0, actor._environment.step))
        monkeypatch.setattr(actor._network, "act", takes(0.25, actor._network.act))
        monkeypatch.setattr(actor._distribution, "noise", takes(0.5, actor._distribution.noise))
        for _ in range(2):
            collected = actor.collect()
            assert collected.environment_seconds == LENGTH
            assert collected.inference_seconds == 0.25 * LENGTH + 0.5


def test_the_actor_keeps_no_gradients() -> None:
    with counting_actor() as actor:
        network = actor._network
        assert not any(weight.requires_grad for weight in network.parameters())
        assert not network.training
