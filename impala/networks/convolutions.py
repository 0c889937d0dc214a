"""Convolutional torsos: one trunk for each image, whose features stand beside all other entries."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from impala.errors import ConfigError
from impala.networks.torsos import Torso, concatenate
from impala.specs import EntrySpec, EnvironmentSpec

# Height and width below which a trunk's kernels do not fit.
SMALLEST_IMAGE = {"minatar": 3, "nature": 36, "shallow": 20, "deep": 1}


class ConvolutionalTorso(Torso):
    """A trunk for each image; its features beside the flattened remaining entries, as in the paper's Figure 3.

    Args:
        spec: of prepared observations.
        trunks: the images that get a trunk, entry name to "minatar", "nature", "shallow" or "deep".

    Raises:
        ConfigError: an image is smaller than its trunk's kernels.
    """

    def __init__(self, spec: EnvironmentSpec, trunks: Mapping[str, str]) -> None:
        super().__init__()
        self._images = sorted(trunks)
        self._vectors = sorted(spec.observations.keys() - trunks.keys())
        built = [_trunk(trunks[name], name, spec.observations[name]) for name in self._images]
        # A list, for entry names may hold dots and modules' names may not.
        self.trunks = nn.ModuleList(trunk for trunk, _ in built)
        self.output_size = sum(features for _, features in built) + sum(spec.observations[name].size for name in self._vectors)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        features = [trunk(observations[name]) for name, trunk in zip(self._images, self.trunks, strict=True)]
        if self._vectors:
            features.append(concatenate(observations, self._vectors))
        return cast(Tensor, features[0]) if len(features) == 1 else torch.cat(features, -1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 (paper, Figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Not in place: x itself goes on beside the branch.
        inner = self.first(functional.relu(x))
        return x + cast(Tensor, self.second(functional.relu(inner)))


def _trunk(kind: str, name: str, entry: EntrySpec) -> tuple[nn.Module, int]:
    channels, height, width = entry.shape
    if min(height, width) < SMALLEST_IMAGE[kind]:
        raise ConfigError(
            f"network: expected images of at least {SMALLEST_IMAGE[kind]} x {SMALLEST_IMAGE[kind]} for {kind}, "
            f"came {name!r} of {height} x {width}"
        )
    return _TRUNKS[kind](channels, height, width)


def _minatar(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """The network of Young and Tian 2019 (arXiv:1903.03176)."""
    convolutions = [nn.Conv2d(channels, 16, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, *_fully_connected(16 * (height - 2) * (width - 2), 128)), 128


def _nature(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """The network of Mnih et al. 2015 (doi:10.1038/nature14236)."""
    convolutions = [nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
    convolutions += [nn.Conv2d(64, 64, 3), nn.ReLU()]
    height, width = (((size - 8) // 4 + 1 - 4) // 2 + 1 - 2 for size in (height, width))
    return nn.Sequential(*_orthogonal([*convolutions, *_fully_connected(64 * height * width, 512)])), 512


def _shallow(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """The small architecture of the paper's Figure 3."""
    convolutions = [nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
    height, width = (((size - 8) // 4 + 1 - 4) // 2 + 1 for size in (height, width))
    return nn.Sequential(*_orthogonal([*convolutions, *_fully_connected(32 * height * width, 256)])), 256


def _deep(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """The large architecture of the paper's Figure 3: 15 convolutions."""
    layers: list[nn.Module] = []
    for section in (16, 32, 32):
        # Padded, so that 84 becomes 42, 21, 11.
        layers += [nn.Conv2d(channels, section, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [ResidualBlock(section), ResidualBlock(section)]
        channels, height, width = section, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.ReLU(), *_fully_connected(channels * height * width, 256)), 256


def _fully_connected(inputs: int, outputs: int) -> list[nn.Module]:
    return [_Flatten(), nn.Linear(inputs, outputs), nn.ReLU()]


def _orthogonal(layers: list[nn.Module]) -> list[nn.Module]:
    """Gives layers with ReLU after each orthogonal weights of gain sqrt(2) and biases of 0; returns them.

    torch's own start makes what passes a layer 2.4 times smaller.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2.0**0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


class _Flatten(nn.Module):
    """Flattens [N, C, H, W] in the order of memory, the channels innermost (`Inputs` prepares images so): no copy in either pass.

    nn.Flatten would bring features and gradients to the other order, which costs as much as the convolutions of a small trunk.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


_TRUNKS: Mapping[str, Callable[[int, int, int], tuple[nn.Module, int]]] = {
    "minatar": _minatar,
    "nature": _nature,
    "shallow": _shallow,
    "deep": _deep,
}
