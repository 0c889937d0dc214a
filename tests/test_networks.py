"""The MLP: shapes, and that one step at a time says what the whole unroll says."""

import numpy as np
import pytest
import torch
from torch import Tensor

from impala.config import NetworkConfig
from impala.errors import ConfigError
from impala.networks import Network, build_network
from impala.specs import EntrySpec, EnvironmentSpec

SPEC = EnvironmentSpec(
    observations={
        # Not in the order of the alphabet, of different sizes, axes and dtypes.
        "position": EntrySpec(shape=(3,), dtype=np.dtype(np.float32)),
        "image": EntrySpec(shape=(2, 2), dtype=np.dtype(np.uint8)),
    },
    num_actions=5,
)


def make_network(*, seed: int = 0, hidden_sizes: tuple[int, ...] = (16, 8)) -> Network:
    torch.manual_seed(seed)
    return build_network(NetworkConfig(hidden_sizes=hidden_sizes), SPEC)


def make_observations(*leading: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "position": torch.randn(*leading, 3, generator=generator),
        "image": torch.randint(0, 256, (*leading, 2, 2), generator=generator, dtype=torch.uint8),
    }


@pytest.mark.parametrize("hidden_sizes", [(), (16,), (16, 8)], ids=str)
def test_logits_have_an_axis_of_actions_and_values_have_none(hidden_sizes: tuple[int, ...]) -> None:
    output = make_network(hidden_sizes=hidden_sizes)(make_observations(7, 4), torch.zeros(7, 4, dtype=torch.bool), {})
    assert output.policy_logits.shape == (7, 4, 5)
    assert output.values.shape == (7, 4)


def test_acting_step_by_step_gives_the_logits_of_the_whole_unroll() -> None:
    network, observations, is_first = make_network(), make_observations(7, 4), torch.zeros(7, 4, dtype=torch.bool)
    whole = network(observations, is_first, network.initial_state(4)).policy_logits
    state = network.initial_state(4)
    for t in range(7):
        logits, state = network.act({name: tensor[t] for name, tensor in observations.items()}, is_first[t], state)
        torch.testing.assert_close(logits, whole[t], rtol=0.0, atol=1e-6)


def test_a_feed_forward_network_has_no_state() -> None:
    network = make_network()
    assert network.initial_state(4) == {}
    assert network.act(make_observations(4), torch.zeros(4, dtype=torch.bool), {})[1] == {}


def test_the_weights_follow_from_the_seed() -> None:
    first, same, other = (make_network(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_order_of_a_message_s_entries_does_not_matter() -> None:
    network, observations = make_network(), make_observations(1, 4)
    backwards = dict(reversed(observations.items()))
    is_first = torch.zeros(1, 4, dtype=torch.bool)
    assert torch.equal(network(observations, is_first, {}).values, network(backwards, is_first, {}).values)


def test_entries_are_concatenated_in_the_order_of_their_names() -> None:
    network, observations = make_network(hidden_sizes=()), make_observations(1, 4)
    flat = torch.cat([observations["image"].reshape(1, 4, 4).float(), observations["position"]], dim=-1)
    weight, bias = network.state_dict()["policy.0.weight"], network.state_dict()["policy.0.bias"]
    logits = network(observations, torch.zeros(1, 4, dtype=torch.bool), {}).policy_logits
    torch.testing.assert_close(logits, flat @ weight.T + bias)


def test_the_first_policy_is_nearly_uniform() -> None:
    observations = {"position": make_observations(50, 4)["position"], "image": torch.zeros(50, 4, 2, 2, dtype=torch.uint8)}
    probabilities = make_network()(observations, torch.zeros(50, 4, dtype=torch.bool), {}).policy_logits.softmax(-1)
    assert bool(((probabilities - 0.2).abs() < 0.02).all())


def test_policy_and_value_share_no_weights() -> None:
    network = make_network()
    network(make_observations(3, 2), torch.zeros(3, 2, dtype=torch.bool), {}).values.sum().backward()
    touched = {name.partition(".")[0] for name, weight in network.named_parameters() if weight.grad is not None}
    assert touched == {"value"}


def test_every_hidden_layer_has_the_width_that_was_asked_for() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in make_network(hidden_sizes=(16, 8)).state_dict().items()}
    for torso, outputs in (("policy", 5), ("value", 1)):
        weights = [shape for name, shape in shapes.items() if name.startswith(torso) and name.endswith("weight")]
        assert weights == [(16, 7), (8, 16), (outputs, 8)]


def test_an_environment_without_observations_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^network: expected an environment with at least one observation"):
        build_network(NetworkConfig(), EnvironmentSpec(observations={}, num_actions=2))
