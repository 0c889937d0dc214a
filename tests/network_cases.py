"""Observation spaces, networks and random observations for the tests of networks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from impala.config import NetworkConfig
from impala.networks import Network, build_network
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec, discrete


def entry(dtype: str, *shape: int, categories: tuple[int, ...] = ()) -> EntrySpec:
    return EntrySpec(shape=shape, dtype=np.dtype(dtype), categories=categories)


def make_spec(actions: ActionSpec | None = None, **observations: EntrySpec) -> EnvironmentSpec:
    return EnvironmentSpec(observations=observations, actions=actions or discrete(3))


def with_last_action_reward(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Adds the two entries as environments do."""
    actions = spec.actions
    last_action = EntrySpec(shape=actions.shape, dtype=actions.dtype, categories=tuple(size + 1 for size in actions.sizes))
    added = {"last_action": last_action, "last_reward": entry("float32")}
    return EnvironmentSpec(observations={**spec.observations, **added}, actions=actions)


@dataclass(frozen=True)
class Case:
    """A network for an observation space."""

    spec: EnvironmentSpec
    config: NetworkConfig

    def build(self, seed: int = 0) -> Network:
        """Builds it with a policy head wide awake: at its initial gain of 0.01 differences would hide in rounding."""
        torch.manual_seed(seed)
        network = build_network(self.config, self.spec)
        with torch.no_grad():
            network.policy_head.weight.mul_(100.0)
        return network


def random_observations(spec: EnvironmentSpec, *leading: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(entry, leading, generator) for name, entry in sorted(spec.observations.items())}


def random_starts(*leading: int, seed: int = 0) -> Tensor:
    """Returns is_first with resets at about every third step."""
    return torch.rand(leading, generator=torch.Generator().manual_seed(seed)) < 0.3


def at(tensors: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    return {name: tensor[step] for name, tensor in tensors.items()}


def _random(entry: EntrySpec, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
    shape = (*leading, *entry.shape)
    dtype = torch.from_numpy(np.zeros(0, entry.dtype)).dtype
    if entry.categories:
        sizes = torch.tensor(entry.categories).reshape(entry.shape)
        return (torch.rand(shape, generator=generator) * sizes).to(dtype)
    if dtype == torch.float32:
        return 2.0 * torch.randn(shape, generator=generator)
    return torch.randint(0, 2 if dtype == torch.bool else 256, shape, generator=generator).to(dtype)
