"""A loss of one's own on the parts of this project: IMPALA's, and a penalty on leaving the policy that acted.

    python -m examples.custom_loss --updates 300

The learner has no flag for a loss: either change `impala.losses.impala_loss`, or train as here, in one process, with what the
project has of environments, actors, networks and V-trace.
"""

import argparse
from collections import deque

import torch
from torch import Tensor

from actor_client.actor import Actor
from impala.config import EnvironmentConfig, LossConfig, NetworkConfig
from impala.environments import VectorEnvironment
from impala.losses import impala_loss
from impala.networks import Network, build_network
from impala.unroll import Unroll, concatenate

# For how many updates the actor keeps its weights: in one process there would be no lag, and nothing to penalise.
UPDATES_PER_FETCH = 4


def near_loss(network: Network, unroll: Unroll[Tensor], config: LossConfig, *, version: int, cost: float) -> Tensor:
    """Returns IMPALA's loss and `cost` times half the sum of (log pi/mu)^2 over the steps that were acted in."""
    policy = network(unroll.observations, unroll.is_first, unroll.initial_state).policy[:-1]
    log_ratios = network.distribution.log_prob(policy, unroll.actions) - unroll.behaviour_log_probs
    far = log_ratios.square().masked_fill(unroll.reset_rows, 0.0).sum()
    return impala_loss(network, unroll, config, parameter_version=version).total + 0.5 * cost * far


def train(updates: int, *, cost: float, seed: int = 0) -> float:
    """Returns the mean return of the last 100 episodes of CartPole-v1."""
    torch.manual_seed(seed)
    config = LossConfig(reward_scale=0.05, entropy_cost=0.005)
    environment = VectorEnvironment(EnvironmentConfig(environment_id="CartPole-v1"), 32)
    learning, acting = (build_network(NetworkConfig(), environment.spec) for _ in range(2))
    actor = Actor(environment, acting, unroll_length=20, seed=seed)
    optimiser = torch.optim.Adam(learning.parameters(), lr=2e-3)
    returns = deque[float](maxlen=100)
    for version in range(updates):
        if version % UPDATES_PER_FETCH == 0:
            actor.load_parameters(version, learning.state_dict())
        collected = actor.collect()
        returns.extend(episode.episode_return for episode in collected.episodes)
        unroll = concatenate([collected.unroll]).map(torch.from_numpy)
        optimiser.zero_grad()
        near_loss(learning, unroll, config, version=version, cost=cost).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning.parameters(), 40.0)
        optimiser.step()
    environment.close()
    return sum(returns) / max(1, len(returns))


def main() -> None:
    """Trains, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--cost", type=float, default=0.1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"mean return of the last 100 episodes: {train(arguments.updates, cost=arguments.cost):.1f}")


if __name__ == "__main__":
    main()
