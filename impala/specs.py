"""What an environment's observations and actions, and a run's unrolls, look like: the agreement between network and wire."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class EntrySpec:
    """One entry of an observation for one environment at one step: its shape and its dtype on the wire."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What a network and the wire need to know of an environment.

    Attributes:
        observations: entry name to its shape and dtype.
        num_actions: actions are 0 .. num_actions - 1, whatever the environment's own start.
    """

    observations: Mapping[str, EntrySpec]
    num_actions: int


@dataclass(frozen=True, kw_only=True)
class UnrollSpec:
    """What the unrolls of a run look like; `decode_unroll` holds them against it.

    Attributes:
        unroll_length: T.
        max_environments: largest E taken.
        environment: observation entries and number of actions.
        state: entries of the recurrent state for one environment; empty for feed-forward networks.
    """

    unroll_length: int
    max_environments: int
    environment: EnvironmentSpec
    state: Mapping[str, EntrySpec]
