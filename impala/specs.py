"""What an environment's observations and actions, and a run's unrolls, look like: the agreement between network and wire."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# The entry of an observation that says which actions are possible; networks obey it and do not learn from it.
ACTION_MASK = "action_mask"
# The entry that tells the tasks of a multi-task run apart.
TASK = "task"
# What the paper's networks see besides the observation (Figure 3), where a run's network asks for it.
LAST_ACTION, LAST_REWARD = "last_action", "last_reward"


@dataclass(frozen=True, kw_only=True)
class EntrySpec:
    """One entry of an observation for one environment at one step.

    Attributes:
        shape, dtype: as on the wire.
        categories: for integers that are names rather than amounts, how many values each element has, in C order: element i is one
            of 0 .. categories[i] - 1. Networks see them one-hot. Empty for everything else.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    categories: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_image(self) -> bool:
        """Whether this is a picture: two axes or more of amounts, height and width among them."""
        return len(self.shape) in {2, 3} and not self.categories


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The actions of one environment at one step, in the form that networks and the wire use, whatever the environment's own.

    Attributes:
        sizes: for k choices made at once, how many options each has, numbered from 0; empty for continuous actions.
        dimensions: how many real numbers a continuous action is; -1 and 1 stand for the environment's bounds where it has both,
            and the environment clips. 0 for choices.
        single: whether there is one choice, a Discrete space: actions are then [...] rather than [..., 1].
    """

    sizes: tuple[int, ...] = ()
    dimensions: int = 0
    single: bool = False

    def __post_init__(self) -> None:
        assert bool(self.sizes) != bool(self.dimensions), "either choices or real numbers"
        assert not self.single or len(self.sizes) == 1, "a single choice has one size"

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of one environment's action at one step."""
        return () if self.single else (len(self.sizes) or self.dimensions,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """int64 for choices, float32 for real numbers."""
        return np.dtype(np.int64 if self.sizes else np.float32)

    @property
    def is_continuous(self) -> bool:
        """Whether actions are real numbers."""
        return self.dimensions > 0


def discrete(num_actions: int) -> ActionSpec:
    """Returns the spec of one choice among `num_actions`."""
    return ActionSpec(sizes=(num_actions,), single=True)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What a network and the wire need to know of an environment.

    Attributes:
        observations: entry name to its shape and dtype.
        actions: what an action is.
    """

    observations: Mapping[str, EntrySpec]
    actions: ActionSpec


@dataclass(frozen=True, kw_only=True)
class UnrollSpec:
    """What the unrolls of a run look like; `decode_unroll` holds them against it.

    Attributes:
        unroll_length: T.
        max_environments: largest E taken.
        environment: observation entries and actions.
        state: entries of the recurrent state for one environment; empty for feed-forward networks.
    """

    unroll_length: int
    max_environments: int
    environment: EnvironmentSpec
    state: Mapping[str, EntrySpec]
