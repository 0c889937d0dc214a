"""A network of one's own: impala-learner --network custom_network:GatedTorso --allow-module custom_network.

The module must be importable (PYTHONPATH) where the learner runs and where actors run, and both must allow it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from impala.networks import Torso
from impala.specs import EnvironmentSpec


class GatedTorso(Torso):
    """One gated layer over all entries; heads, LSTM, frame stack and normalisation come from around it."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        super().__init__()
        self.names = sorted(spec.observations)
        self.layer = nn.Linear(sum(spec.observations[name].size for name in self.names), 2 * 64)
        self.output_size = 64

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        inputs = torch.cat([observations[name].flatten(1) for name in self.names], dim=-1)
        return nn.functional.glu(self.layer(inputs))
