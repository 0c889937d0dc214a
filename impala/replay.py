"""Trajectory replay: the newest trajectories, drawn from uniformly (paper, section 5.2.2).

A batch of both kinds is `impala.unroll.concatenate([fresh, replayed])`.
"""

from typing import Any

import numpy as np

from impala.errors import CheckpointError
from impala.specs import EntrySpec, UnrollSpec
from impala.unroll import Unroll


class TrajectoryReplay:
    """A ring of trajectories, each one column of an unroll: the oldest leaves when a new one needs its place.

    Memory is bounded by `capacity` x `bytes_per_trajectory` and taken at the first `add`. A trajectory keeps the version of the
    weights that acted and the recurrent state it began with, so that lag and ratios of a replayed one are right.

    Args:
        capacity: trajectories held at most (paper: 10,000).
        seed: of the draws.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        assert capacity >= 1, capacity
        self._capacity = capacity
        self._random = np.random.default_rng(seed)
        # Time leads here too: what is drawn comes out as a batch, without a transposition.
        self._ring: Unroll[np.ndarray] | None = None
        self._next = 0
        self._held = 0

    def __len__(self) -> int:
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; 0 before the first `add`, and the same ever after."""
        return 0 if self._ring is None else sum(array.nbytes for array in self._ring.arrays())

    @staticmethod
    def bytes_per_trajectory(spec: UnrollSpec) -> int:
        """Returns the bytes that one trajectory takes, so that a bound can be stated before a run."""
        rows, actions = spec.unroll_length, spec.environment.actions
        observation = sum(_bytes(entry) for entry in spec.environment.observations.values())
        action = actions.dtype.itemsize * int(np.prod(actions.shape, dtype=np.int64))
        # is_first and terminated are bytes, rewards and log-probabilities float32, the version int64.
        return (rows + 1) * (observation + 1) + rows * (action + 1 + 4 + 4) + sum(map(_bytes, spec.state.values())) + 8

    def add(self, unroll: Unroll[np.ndarray]) -> None:
        """Copies the unroll's columns in, in their order. All unrolls have the shapes of the first."""
        if self._ring is None:
            self._ring = unroll.by_column(self._empty)
        assert unroll.length == self._ring.length, (unroll.length, self._ring.length)
        first = 0
        while first < unroll.environments:
            count = min(unroll.environments - first, self._capacity - self._next)
            places = self._ring.columns(self._next, self._next + count)
            for place, array in zip(places.arrays(), unroll.columns(first, first + count).arrays(), strict=True):
                place[...] = array
            first += count
            self._next = (self._next + count) % self._capacity
            self._held = min(self._capacity, self._held + count)

    def sample(self, count: int) -> Unroll[np.ndarray]:
        """Returns a copy of `count` trajectories, [T, count], drawn uniformly and with replacement.

        With replacement a draw of any size is possible from the first trajectory on, and every draw is independent of the others.

        Raises:
            ValueError: nothing is held.
        """
        if self._ring is None:
            raise ValueError(f"count: expected 0 from an empty replay, came {count}")
        chosen = self._random.integers(self._held, size=count)
        return self._ring.by_column(lambda array, axis: array.take(chosen, axis))

    @property
    def random_state(self) -> dict[str, Any]:
        """The state of the draws, of JSON values, for a checkpoint. What is held is in none: a new process fills it anew."""
        return dict(self._random.bit_generator.state)

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        try:
            self._random.bit_generator.state = state
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"random_state: expected the state of a generator of draws, came {state} ({error})") from error

    def _empty(self, like: np.ndarray, axis: int) -> np.ndarray:
        shape = (*like.shape[:axis], self._capacity, *like.shape[axis + 1 :])
        return np.empty(shape, dtype=like.dtype)


def _bytes(entry: EntrySpec) -> int:
    return entry.size * entry.dtype.itemsize
