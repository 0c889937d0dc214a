"""Frame stacking: the last frames of an episode are recurrent state, so that each crosses the wire once."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from impala.errors import ConfigError
from impala.specs import EntrySpec, EnvironmentSpec


class FrameStack:
    """Stacks the newest k frames of every image entry; those from before the episode are zeros.

    The state of an entry is called "frames.<name>": [B, k-1, ...], of the entry's dtype, the oldest first.

    Args:
        spec: of raw observations.
        count: k; 0 is 4 where all images are of bytes without a channel axis, such as Atari's, else 1.

    Raises:
        ConfigError: there is no image to stack.
    """

    def __init__(self, spec: EnvironmentSpec, count: int) -> None:
        images = {name: entry for name, entry in spec.observations.items() if entry.is_image}
        if count > 1 and not images:
            raise ConfigError(f"frame_stack: expected images to stack {count} of, came only {sorted(spec.observations)}")
        self.count = count or (4 if images and all(map(_is_bytes_without_channels, images.values())) else 1)
        self._entries = images if self.count > 1 else {}
        self._made: dict[tuple[int, int, torch.device], Tensor] = {}

    def initial_state(self, environments: int, device: torch.device) -> dict[str, Tensor]:
        """Returns zeros, entry name to [E, k-1, ...]; nothing where k is 1."""
        return {
            f"frames.{name}": torch.from_numpy(np.zeros((environments, self.count - 1, *entry.shape), entry.dtype)).to(device)
            for name, entry in self._entries.items()
        }

    def stack(
        self, observations: Mapping[str, Tensor], is_first: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the observations, images stacked, [T, B, k, ...], the newest last; and the state after the last step.

        Args:
            observations: entry name to [T, B, ...].
            is_first: [T, B] bool.
            state: entry name to [B, k-1, ...], before the first step.
        """
        stacked, after = dict(observations), {}
        sources = self._sources(is_first)
        for name in self._entries:
            kept, new = state[f"frames.{name}"], observations[name]
            none = new.new_zeros((1, *new.shape[2:]))
            frames = torch.cat([none, kept.flatten(0, 1), new.flatten(0, 1)])
            # Whole frames by their numbers: one copy of each, where masking would make two, byte by byte.
            chosen = frames.index_select(0, sources.flatten())
            stacked[name] = chosen.reshape(*sources.shape, *new.shape[2:])
            after[f"frames.{name}"] = stacked[name][-1, :, 1:]
        return stacked, after

    def _sources(self, is_first: Tensor) -> Tensor:
        """Returns [T, B, k]: which frame stands where, of one of zeros, B times k-1 kept ones, and T times B new ones."""
        steps, environments = is_first.shape
        return torch.where(self._same_episode(is_first), self._numbers(steps, environments, is_first.device), 0)

    def _numbers(self, steps: int, environments: int, device: torch.device) -> Tensor:
        """Returns what `_sources` does where no episode begins; made once, for an actor asks for the same at every step."""
        key = steps, environments, device
        if key not in self._made:
            with torch.inference_mode(mode=False):  # of use to any caller after this one
                before = self.count - 1
                row = (torch.arange(steps, device=device)[:, None] + torch.arange(self.count, device=device))[:, None, :]
                environment = torch.arange(environments, device=device)[:, None]
                kept = 1 + environment * before + row
                new = 1 + environments * before + (row - before) * environments + environment
                self._made[key] = torch.where(row < before, kept, new)
        return self._made[key]

    def _same_episode(self, is_first: Tensor) -> Tensor:
        """Returns [T, B, k] bool: whether the frame k-1, ..., 1, 0 steps back belongs to the episode of step t."""
        episode = is_first.long().cumsum(0)
        before = torch.zeros_like(episode[:1]).expand(self.count - 1, -1)
        return torch.cat([before, episode]).unfold(0, self.count, 1) == episode.unsqueeze(-1)


def _is_bytes_without_channels(entry: EntrySpec) -> bool:
    return entry.dtype == np.uint8 and len(entry.shape) == 2
