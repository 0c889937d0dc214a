"""The example of a network of one's own works as its text says."""

from pathlib import Path

import pytest
import torch

from impala.config import NetworkConfig
from impala.errors import ConfigError
from impala.networks import build_network
from tests.network_cases import entry, make_spec, random_observations, random_starts

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_custom_network_learns_from_every_entry_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = make_spec(image=entry("uint8", 5, 5), vector=entry("float32", 2), kind=entry("int64", categories=(3,)))
    config = NetworkConfig(network="custom_network:GatedTorso", lstm_size=4, frame_stack=2)
    with pytest.raises(ConfigError, match="--allow-module custom_network"):
        build_network(config, spec)
    network = build_network(config, spec, allowed_modules=["custom_network"])
    output = network(random_observations(spec, 3, 2), random_starts(3, 2), network.initial_state(2))
    (output.policy.square().sum() + output.values.sum()).backward()
    gradient = network.get_parameter("torso.layer.weight").grad
    assert gradient is not None
    assert gradient.shape == (2 * 64, 2 * 25 + 2 + 3)
    assert torch.count_nonzero(gradient.abs().sum(0)) == gradient.shape[1]
