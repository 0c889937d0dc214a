"""The paper's networks: their sizes, and that a skip connection skips."""

import numpy as np
import pytest
import torch

from impala.config import NetworkConfig
from impala.networks import build_network
from impala.networks.convolutions import ConvolutionalTorso, ResidualBlock
from impala.specs import EnvironmentSpec, discrete
from tests.network_cases import entry, make_spec, with_last_action_reward

# A full set of Atari's actions.
ATARI = with_last_action_reward(make_spec(discrete(18), observation=entry("uint8", 84, 84)))


@pytest.mark.parametrize(("network", "parameters", "features"), [("shallow", 1_226_819, 256), ("deep", 1_639_907, 256)])
def test_the_papers_networks_have_the_size_that_figure_3_states(network: str, parameters: int, features: int) -> None:
    built = build_network(NetworkConfig(network=network, lstm_size=256, last_action_reward=True), ATARI)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert f"{parameters / 1e6:.1f}" == {"shallow": "1.2", "deep": "1.6"}[network]
    assert built.torso.output_size == features + 18 + 1


def test_the_network_of_mnih_2015_has_its_size() -> None:
    spec = make_spec(image=entry("float32", 4, 84, 84))
    torso = ConvolutionalTorso(EnvironmentSpec(observations=spec.observations, actions=spec.actions), {"image": "nature"})
    # Three convolutions and the fully connected layer, weights and biases, for four frames of 84 x 84.
    assert sum(parameter.numel() for parameter in torso.parameters()) == 8_224 + 32_832 + 36_928 + 1_606_144
    assert torso.output_size == 512


@pytest.mark.parametrize(
    ("trunk", "size", "columns"),
    [
        ("minatar", (10, 9), 16 * 8 * 7),
        ("nature", (84, 83), 64 * 7 * 6),
        ("shallow", (84, 84), 32 * 81),
        ("deep", (84, 83), 32 * 11 * 11),
    ],
)
def test_a_fully_connected_layer_sees_what_the_convolutions_leave(trunk: str, size: tuple[int, int], columns: int) -> None:
    spec = make_spec(vector=entry("float32", 3), image=entry("float32", 2, *size))
    torso = ConvolutionalTorso(EnvironmentSpec(observations=spec.observations, actions=spec.actions), {"image": trunk})
    image, vector = torch.randn(5, 2, *size), torch.randn(5, 3)
    features = torso({"vector": vector, "image": image})
    assert features.shape == (5, torso.output_size)
    assert torch.equal(features[:, -3:], vector)
    assert bool((features[:, :-3] >= 0.0).all())
    assert columns in {parameter.shape[-1] for name, parameter in torso.named_parameters() if name.endswith("weight")}


@pytest.mark.parametrize(("trunk", "size"), [("minatar", 10), ("nature", 84), ("shallow", 84), ("deep", 84)])
def test_features_are_flattened_as_they_lie_in_memory(trunk: str, size: int) -> None:
    spec = make_spec(image=entry("float32", 4, size, size))
    torso = ConvolutionalTorso(EnvironmentSpec(observations=spec.observations, actions=spec.actions), {"image": trunk})
    seen: dict[str, int] = {}
    linear = next(module for module in torso.modules() if isinstance(module, torch.nn.Linear))
    before = next(module for module in torso.modules() if type(module).__name__ == "_Flatten")
    before.register_forward_pre_hook(lambda _, came: seen.update(before=came[0].data_ptr()))
    linear.register_forward_pre_hook(lambda _, came: seen.update(after=came[0].data_ptr()))
    torso({"image": torch.randn(2, 4, size, size).contiguous(memory_format=torch.channels_last)})
    assert seen["before"] == seen["after"]


@pytest.mark.parametrize("trunk", ["nature", "shallow"])
def test_layers_before_a_relu_start_orthogonal(trunk: str) -> None:
    spec = make_spec(image=entry("float32", 4, 84, 84))
    torso = ConvolutionalTorso(EnvironmentSpec(observations=spec.observations, actions=spec.actions), {"image": trunk})
    for name, parameter in torso.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            weight = parameter.detach().flatten(1)
            assert torch.allclose(weight @ weight.T, 2.0 * torch.eye(len(weight)), atol=1e-4)


def test_each_image_has_a_trunk_of_its_own() -> None:
    spec = make_spec(a=entry("float32", 1, 5, 5), b=entry("float32", 1, 5, 5))
    torso = ConvolutionalTorso(spec, {"b": "minatar", "a": "minatar"})
    images = {name: torch.randn(2, 1, 5, 5) for name in ("a", "b")}
    base, changed = torso(images), torso({**images, "b": torch.zeros(2, 1, 5, 5)})
    assert torch.equal(base[:, :128], changed[:, :128])
    assert not torch.equal(base[:, 128:], changed[:, 128:])


def test_a_residual_block_adds_its_branch_to_what_came() -> None:
    block, x = ResidualBlock(2), torch.randn(1, 2, 4, 4)
    came = x.clone()
    expected = came + block.second(block.first(came.clamp(min=0.0)).clamp(min=0.0))
    torch.testing.assert_close(block(x), expected)
    assert np.array_equal(x, came)
