"""The actor: an unroll is exactly what the environments did, chosen by one version of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actor_client.actor import Actor
from impala.config import NetworkConfig
from impala.environments import OBSERVATION, VectorEnvironment
from impala.networks import Network, NetworkOutput, State, build_network
from impala.unroll import Unroll, concatenate
from tests.test_environments import STOP, registered

ENVIRONMENTS, LENGTH, ENDS_AT = 4, 6, 3


class StepsSinceFirst(Network):
    """A recurrent network whose state counts the observations of the episode; all actions are equally likely."""

    def __init__(self) -> None:
        super().__init__()
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
        environment = VectorEnvironment(counter, {"ends_at": ENDS_AT, "ending": ending}, ENVIRONMENTS)
    actor = Actor(environment, network or mlp(environment), unroll_length=LENGTH, seed=seed)
    try:
        yield actor
    finally:
        environment.close()


def mlp(environment: VectorEnvironment, *, seed: int = 0) -> Network:
    """Returns a network whose policy is far from uniform and differs between observations."""
    torch.manual_seed(seed)
    network = build_network(NetworkConfig(hidden_sizes=(16,)), environment.spec)
    with torch.no_grad():
        network.get_parameter("policy.2.weight").mul_(100.0)
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


def test_the_behaviour_log_probs_are_those_of_the_network_at_these_observations() -> None:
    with counting_actor() as actor:
        unrolls = [collect(actor) for _ in range(3)]
        network = actor._network
    for unroll in unrolls:
        tensors = unroll.map(torch.from_numpy)
        logits = network(tensors.observations, tensors.is_first, {}).policy_logits[:-1]
        expected = logits.log_softmax(-1).gather(-1, tensors.actions.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(tensors.behaviour_log_probs, expected, rtol=0.0, atol=1e-6)
        assert float(expected.std()) > 0.1


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
        weights["policy.2.bias"][1] = 50.0
        actor.load_parameters(1, weights)
        after = collect(actor)
    assert (before.actions != 1).any()
    assert (after.actions == 1).all()


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
        environment = VectorEnvironment("CartPole-v1", {}, 2)
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


def test_the_actor_keeps_no_gradients() -> None:
    with counting_actor() as actor:
        network = actor._network
        assert not any(weight.requires_grad for weight in network.parameters())
        assert not network.training
