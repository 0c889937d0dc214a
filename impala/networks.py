"""Networks: from observations to a policy and a value, over whole unrolls and over single steps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from impala.config import NetworkConfig
from impala.errors import ConfigError
from impala.specs import EnvironmentSpec

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """What a network says of T+1 observations of B trajectories.

    Attributes:
        policy_logits: [T+1, B, A] unnormalised log-probabilities of the actions.
        values: [T+1, B] V(x_t).
    """

    policy_logits: Tensor
    values: Tensor


class Network(nn.Module, ABC):
    """A policy and a baseline. The learner calls it on whole unrolls, an actor calls `act` on single steps."""

    @abstractmethod
    def initial_state(self, environments: int) -> State:
        """Returns the recurrent state at the start of an episode, entry name to [E, ...]; empty for feed-forward networks."""

    @abstractmethod
    def forward(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> NetworkOutput:
        """Returns logits and values of a whole unroll.

        Args:
            observations: entry name to [T+1, B, ...].
            is_first: [T+1, B] bool; where true the state is zeroed before the observation is consumed.
            state: entry name to [B, ...], before x_0.
        """

    @abstractmethod
    def act(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the logits, [E, A], of one step and the state after it: equal to `forward` on an unroll of single steps.

        Args:
            observations: entry name to [E, ...].
            is_first: [E] bool.
            state: entry name to [E, ...], before these observations.
        """


class MLP(Network):
    """Separate tanh torsos for policy and value, over the flattened entries of the observation, concatenated by name.

    Separate, because a value in the hundreds and a policy near 0 pull a small shared torso apart.
    """

    def __init__(self, spec: EnvironmentSpec, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._names = sorted(spec.observations)
        inputs = sum(entry.size for entry in spec.observations.values())
        self.policy = _torso(inputs, hidden_sizes, spec.num_actions, gain=0.01)
        self.value = _torso(inputs, hidden_sizes, 1, gain=1.0)

    def initial_state(self, environments: int) -> State:
        return {}

    def forward(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> NetworkOutput:
        inputs = self._inputs(observations, leading=2)
        # The explicit squeeze: a value of [T, B, 1] would broadcast against [T, B] without a word.
        return NetworkOutput(policy_logits=self.policy(inputs), values=self.value(inputs).squeeze(-1))

    def act(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> tuple[Tensor, State]:
        return self.policy(self._inputs(observations, leading=1)), state

    def _inputs(self, observations: Mapping[str, Tensor], leading: int) -> Tensor:
        entries = [observations[name].flatten(leading).float() for name in self._names]
        return entries[0] if len(entries) == 1 else torch.cat(entries, dim=-1)


def _torso(inputs: int, hidden_sizes: tuple[int, ...], outputs: int, *, gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [_linear(inputs, size, gain=2.0**0.5), nn.Tanh()]
        inputs = size
    return nn.Sequential(*layers, _linear(inputs, outputs, gain=gain))


def _linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def build_network(config: NetworkConfig, spec: EnvironmentSpec) -> Network:
    """Returns a new network for an environment, its weights drawn from torch's global random state.

    Raises:
        ConfigError: the network does not take such observations.
    """
    if not spec.observations:
        raise ConfigError("network: expected an environment with at least one observation entry, came none")
    return MLP(spec, config.hidden_sizes)
