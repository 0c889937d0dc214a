"""Inputs: from the raw entries of an observation to what torsos see, each entry by its kind."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from impala.networks.normalisation import Gather, ObservationStatistics, PixelMeans
from impala.specs import ACTION_MASK, LAST_ACTION, LAST_REWARD, EntrySpec, EnvironmentSpec

# The compiled loop over frames has one thread, in which it takes a third of the time of torch's operators: with more than three
# threads those should be ahead (not measured).
_LOOP_THREADS = 3


class Inputs(nn.Module):
    """Prepares observations for torsos.

    Images become [N, C, H, W], stacked frames as channels; everything else [N, k]. Bytes are divided by 255; categories become
    one-hot, "none" of the last action all zeros; the last reward is clipped to [-1, 1] (paper, Figure 3). Where that is asked for,
    remaining float vectors are normalised, and images of bytes centred, pixel by pixel. The action mask is no input.

    Args:
        spec: of raw observations.
        frame_stack: k; where more than 1, images come as [N, k, ...].
        normalise: whether float vectors are normalised, and images centred.

    Attributes:
        spec: of prepared observations; the actions' is as it was.
    """

    def __init__(self, spec: EnvironmentSpec, *, frame_stack: int, normalise: bool) -> None:
        super().__init__()
        entries = {name: entry for name, entry in sorted(spec.observations.items()) if name != ACTION_MASK}
        self._centred = [name for name, entry in entries.items() if normalise and entry.is_image and entry.dtype == np.uint8]
        # Lists, for entry names may hold dots and modules' names may not.
        centre = {name: PixelMeans(entries[name].shape) for name in self._centred}
        self.pixel_means = nn.ModuleList(centre.values())
        self._preparations = [(name, _preparation(name, entry, frame_stack, centre.get(name))) for name, entry in entries.items()]
        # Found by name above, registered here so that they follow the network to its device.
        self.one_hots = nn.ModuleList(prepare for _, prepare in self._preparations if isinstance(prepare, OneHot))
        self.spec = EnvironmentSpec(
            observations={name: _prepared_entry(name, entry, frame_stack) for name, entry in entries.items()}, actions=spec.actions
        )
        self._normalised = [name for name, entry in entries.items() if normalise and _is_normalised(name, entry)]
        self._sizes = [entries[name].size for name in self._normalised]
        if self._normalised:
            self.statistics = ObservationStatistics(sum(self._sizes))

    def prepare(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns prepared entries, [N, ...], of raw ones, [N, ...]."""
        prepared = {name: prepare(observations[name]) for name, prepare in self._preparations}
        if self._normalised:
            normalised = self.statistics(torch.cat([prepared[name] for name in self._normalised], -1))
            prepared.update(zip(self._normalised, normalised.split(self._sizes, -1), strict=True))
        return prepared

    def update_statistics(self, observations: Mapping[str, Tensor], gather: Gather | None = None) -> None:
        """Takes raw entries, [T, B, ...], into the running statistics, with those of every learner where there are several."""
        for name, means in zip(self._centred, self.pixel_means, strict=True):
            # One of each unroll is enough: those that follow it are nearly the same.
            cast(PixelMeans, means).update(observations[name][0], gather)
        if self._normalised:
            columns = zip(self._normalised, self._sizes, strict=True)
            vectors = torch.cat([observations[name].float().reshape(-1, size) for name, size in columns], -1)
            self.statistics.update(vectors, gather)


class OneHot(nn.Module):
    """Categories, [N, ...] integers, as [N, k] ones and zeros, elements one after the other.

    Args:
        categories: how many values each element has.
        first: the value of the first column; those below it are all zeros.
    """

    element: Tensor
    value: Tensor

    def __init__(self, categories: tuple[int, ...], first: int) -> None:
        super().__init__()
        columns = [(element, value) for element, size in enumerate(categories) for value in range(first, size)]
        # They follow from the spec: no part of the weights.
        self.register_buffer("element", torch.tensor([element for element, _ in columns]), persistent=False)
        self.register_buffer("value", torch.tensor([value for _, value in columns]), persistent=False)

    def forward(self, entry: Tensor) -> Tensor:
        return (entry.reshape(entry.shape[0], -1)[:, self.element] == self.value).float()


@dataclass(frozen=True, kw_only=True)
class _Image:
    shape: tuple[int, ...]
    frames: int
    scale: float
    centre: PixelMeans | None

    def __call__(self, entry: Tensor) -> Tensor:
        image = entry.reshape(-1, self.frames, *self.shape)
        if (loop := self._loop(image)) is not None:
            mean = torch.zeros(self.shape) if self.centre is None else self.centre.mean
            prepared: Tensor = loop.prepare_frames(image, mean, self.scale)
            return prepared
        if self.centre is not None:
            image = self.centre(image)
        if len(self.shape) == 3:
            image = (image.permute(0, 1, 4, 2, 3) if _channels_last(self.shape) else image).flatten(1, 2)
        # Convolutions of few channels run up to twice as fast on processors with the channels innermost.
        return _scaled(image, self.scale).contiguous(memory_format=torch.channels_last)

    def _loop(self, image: Tensor) -> ModuleType | None:
        suits = len(self.shape) == 2 and image.dtype is torch.uint8 and image.is_cpu and torch.get_num_threads() <= _LOOP_THREADS
        # Who computes gradients is a learner. Actors do without the compiler and its 135 MB; a compiled network has its own.
        return _frame_loop() if suits and torch.is_grad_enabled() and not torch.compiler.is_compiling() else None


@functools.cache
def _frame_loop() -> ModuleType | None:
    """Returns `impala.networks.frame_loop`, or None where numba is not installed."""
    try:
        from impala.networks import frame_loop  # late, as in impala.vtrace
    except ImportError:
        return None
    return frame_loop


@dataclass(frozen=True, kw_only=True)
class _Vector:
    scale: float

    def __call__(self, entry: Tensor) -> Tensor:
        return _scaled(entry.flatten(1) if entry.dim() > 1 else entry.unsqueeze(-1), self.scale)


def _last_reward(entry: Tensor) -> Tensor:
    return entry.reshape(-1, 1).float().clamp(-1.0, 1.0)


def _scaled(entry: Tensor, scale: float) -> Tensor:
    return entry.float() if scale == 1.0 else entry.float().mul_(scale)


def _preparation(name: str, entry: EntrySpec, frames: int, centre: PixelMeans | None) -> Callable[[Tensor], Tensor]:
    # Multiplied by: a division takes twice as long.
    scale = 1.0 / 255.0 if entry.dtype == np.uint8 else 1.0
    if entry.categories:
        return OneHot(entry.categories, first=_first_category(name))
    if name == LAST_REWARD:
        return _last_reward
    if entry.is_image:
        return _Image(shape=entry.shape, frames=frames, scale=scale, centre=centre)
    return _Vector(scale=scale)


def _prepared_entry(name: str, entry: EntrySpec, frames: int) -> EntrySpec:
    if entry.categories:
        shape: tuple[int, ...] = (sum(entry.categories) - _first_category(name) * len(entry.categories),)
    elif not entry.is_image:
        shape = (entry.size,)
    elif len(entry.shape) == 2:
        shape = (frames, *entry.shape)
    elif _channels_last(entry.shape):
        shape = (frames * entry.shape[2], *entry.shape[:2])
    else:
        shape = (frames * entry.shape[0], *entry.shape[1:])
    return EntrySpec(shape=shape, dtype=np.dtype(np.float32))


def _first_category(name: str) -> int:
    return 1 if name == LAST_ACTION else 0


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[0] >= shape[2]


def _is_normalised(name: str, entry: EntrySpec) -> bool:
    return entry.dtype.kind == "f" and not entry.is_image and not entry.categories and name not in {LAST_ACTION, LAST_REWARD}
