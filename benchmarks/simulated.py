"""Actor and learner in one process, in turn, with a lag of exactly so many updates: the algorithm without the service."""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actor_client.actor import Actor
from impala.config import EnvironmentConfig, LossConfig, NetworkConfig
from impala.environments import VectorEnvironment
from impala.losses import impala_loss
from impala.networks import Network, NetworkOutput, build_network
from impala.unroll import Episode, Unroll, concatenate

MAX_GRAD_NORM = 40.0


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is trained, and how.

    Attributes:
        lag: updates between the weights that act and those that learn, as soon as there were so many.
        gradient_scale: of every gradient: 1 for summed losses, 1 / (T B) for means.
        optimiser: made of the weights.
        edit: what the learner gets to see of an unroll.
        resets_inside: whether the learner's network resets its state where an episode begins inside an unroll.
    """

    environment: str
    loss: LossConfig
    optimiser: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    environments: int = 32
    unroll_length: int = 20
    lag: int = 2
    gradient_scale: float = 1.0
    edit: Callable[[Unroll[np.ndarray]], Unroll[np.ndarray]] = lambda unroll: unroll
    resets_inside: bool = True


@dataclass(frozen=True, kw_only=True)
class Update:
    """The state of a run before an update, which is taken when the next one is asked for."""

    # number: of the update; network: the learner's, before it; episodes: that ended in its unroll.

    number: int
    network: Network
    actor: Actor
    snapshots: deque[dict[str, Tensor]]
    episodes: list[Episode]


def simulate(simulation: Simulation, seed: int, *, kept: int = 0) -> Generator[Update]:
    """Yields before every update; `snapshots` holds the weights of at least `kept` updates before, newest last."""
    torch.manual_seed(seed)
    environment = VectorEnvironment(EnvironmentConfig(environment_id=simulation.environment), simulation.environments)
    try:
        network, acting = (build_network(simulation.network, environment.spec) for _ in range(2))
        actor = Actor(environment, acting, unroll_length=simulation.unroll_length, seed=seed)
        weights = list(network.parameters())
        optimiser = simulation.optimiser(weights)
        snapshots = deque[dict[str, Tensor]](maxlen=1 + max(kept, simulation.lag))
        number = 0
        while True:
            snapshots.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
            lag = min(simulation.lag, len(snapshots) - 1)
            actor.load_parameters(number - lag, snapshots[-1 - lag])
            collected = actor.collect()
            unroll = simulation.edit(concatenate([collected.unroll])).map(torch.from_numpy)
            yield Update(number=number, network=network, actor=actor, snapshots=snapshots, episodes=collected.episodes)

            forward = None if simulation.resets_inside else _without_resets(network)
            loss = impala_loss(network, unroll, simulation.loss, parameter_version=number, forward=forward)
            optimiser.zero_grad()
            (simulation.gradient_scale * loss.total).backward()
            torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
            optimiser.step()
            number += 1
    finally:
        environment.close()


def _without_resets(network: Network) -> Callable[..., NetworkOutput]:
    """Returns the network's forward pass with the state carried through from one episode into the next."""

    def forward(observations: Any, is_first: Tensor, state: Any) -> NetworkOutput:
        kept = torch.zeros_like(is_first)
        kept[0] = is_first[0]
        return network(observations, kept, state)  # type: ignore[no-any-return]

    return forward


def without_reset_rows(unroll: Unroll[np.ndarray]) -> Unroll[np.ndarray]:
    """Returns the unroll as if its reset rows were steps like any other. For networks without a memory, which need no is_first."""
    return replace(unroll, is_first=np.zeros_like(unroll.is_first))


def limit_as_termination(unroll: Unroll[np.ndarray]) -> Unroll[np.ndarray]:
    """Returns the unroll as if a time limit were an end: terminated on every row before a reset row."""
    terminated = unroll.terminated.copy()
    terminated[:-1] |= unroll.is_first[2:]
    return replace(unroll, terminated=terminated)
