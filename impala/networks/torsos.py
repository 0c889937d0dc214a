"""Torsos: from one observation, all its entries, to features. The base of one's own, and the one without convolutions."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from impala.specs import EnvironmentSpec


class Torso(nn.Module):
    """Turns prepared observations into features; the base class of torsos of one's own (`--network MODULE:CLASS`).

    It is made as `CLASS(spec)`. The spec is that of prepared observations: every entry float32, images [C, H, W] with stacked
    frames as channels, everything else [k], categories one-hot; no action mask.

    Attributes:
        output_size: number of features.
    """

    output_size: int

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Returns features, [N, output_size].

        Args:
            observations: entry name to [N, *shape], shapes as in the spec. N is a step's environments or an unroll's T+1 times
                B: a torso knows no time.
        """
        raise NotImplementedError


class MLPTorso(Torso):
    """Linear layers with tanh after each, over all entries, flattened and concatenated in the order of their names."""

    def __init__(self, spec: EnvironmentSpec, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._names = sorted(spec.observations)
        sizes = [sum(entry.size for entry in spec.observations.values()), *hidden_sizes]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [orthogonal_linear(inputs, outputs, gain=2.0**0.5), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self._linear = layers[::2]
        self.output_size = sizes[-1]

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        features = concatenate(observations, self._names)
        # Half of what a step of a small network costs is calls of modules; these do without those of Sequential and Tanh.
        for layer in self._linear:
            features = torch.tanh(layer(features))
        return features


def concatenate(observations: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Returns the named entries, flattened, side by side: [N, sum of sizes]."""
    if len(names) == 1:
        return observations[names[0]].flatten(1)
    return torch.cat([observations[name].flatten(1) for name in names], -1)


def orthogonal_linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    """Returns a linear layer with orthogonal weights of this gain and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
