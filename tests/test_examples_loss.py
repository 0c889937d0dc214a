"""The example of a loss of one's own works as its text says."""

from collections.abc import Iterator

import pytest
import torch

from actor_client.actor import Actor
from examples import custom_loss
from impala.config import EnvironmentConfig, LossConfig, NetworkConfig
from impala.environments import VectorEnvironment
from impala.losses import impala_loss
from impala.networks import Network, build_network
from impala.unroll import Unroll, concatenate


@pytest.fixture(scope="module")
def acted() -> Iterator[tuple[Network, Unroll[torch.Tensor]]]:
    """Yields a network, and an unroll that another one acted."""
    torch.manual_seed(0)
    environment = VectorEnvironment(EnvironmentConfig(environment_id="CartPole-v1"), 4)
    network, acting = (build_network(NetworkConfig(), environment.spec) for _ in range(2))
    with torch.no_grad():
        network.policy_head.bias += torch.tensor([1.0, -1.0])
    yield network, concatenate([Actor(environment, acting, unroll_length=20, seed=0).collect().unroll]).map(torch.from_numpy)
    environment.close()


def test_without_a_cost_it_is_impala_s_loss(acted: tuple[Network, Unroll[torch.Tensor]]) -> None:
    network, unroll = acted
    expected = impala_loss(network, unroll, LossConfig(), parameter_version=1).total
    assert custom_loss.near_loss(network, unroll, LossConfig(), version=1, cost=0.0).item() == expected.item()


def test_the_penalty_draws_the_policy_to_the_one_that_acted(acted: tuple[Network, Unroll[torch.Tensor]]) -> None:
    network, unroll = acted
    plain, held = (custom_loss.near_loss(network, unroll, LossConfig(), version=1, cost=cost) for cost in (0.0, 1.0))
    bias = network.policy_head.bias
    (gradient,) = torch.autograd.grad(held - plain, bias)
    # Action 0 is too probable by e: descending makes it less so.
    assert gradient[0] > 1.0
    assert gradient[1] < -1.0


def test_it_trains() -> None:
    assert custom_loss.train(10, cost=0.1) > 5.0


def test_the_policy_leaves_the_one_that_acted_so_that_the_penalty_counts() -> None:
    assert custom_loss.train(12, cost=10.0) != custom_loss.train(12, cost=0.0)
