"""The Unroll: T steps of E environments, as an actor collected them and as the learner trains on them.

One convention, with no special cases. Row t is the transition x_t -> x_{t+1}. After an episode's last step, x_{t+1} is its true
final observation, and transition t+1 is the reset, so that `is_first[t+2]`. Reset rows are real rows of zero weight.

Environments that begin the next episode at once have no row for the reset: x_{t+1} is then the next episode's first observation
already, `is_first[t+1]`. If the episode terminated, nothing of x_{t+1} is needed and row t counts; if it was truncated, its final
observation is gone, and row t is given up as a reset row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from impala.specs import UnrollSpec

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)
OtherT = TypeVar("OtherT", np.ndarray, torch.Tensor)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode, of true (unclipped, undiscounted) rewards. `length` is in agent steps."""

    episode_return: float
    length: int


@dataclass(frozen=True, kw_only=True)
class ActorTimes:
    """How an actor spent the time from the end of one unroll to the end of the next, in seconds.

    Attributes:
        total: of it; what the others leave went into encoding, sending and the like.
        environment: stepping environments.
        inference: computing and drawing actions.
        waiting: for a place among the unrolls under way, for weights, or, with one unroll at a time, for its answer.
        line: that unrolls stood in line at the learner, of submissions answered in that time; several may overlap.
        sending: the rest of those submissions, from request to answer.
        fetching: calls that brought weights in that time.
        starved: the actor's own thread could have run and had no core to run on.
    """

    total: float
    environment: float
    inference: float
    waiting: float
    line: float = 0.0
    sending: float = 0.0
    fetching: float = 0.0
    starved: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Unroll(Generic[ArrayT]):
    """T steps of E environments, of NumPy arrays (on the wire, in the queue) or of tensors (in the loss).

    Attributes:
        observations: entry name to [T+1, E, ...]: x_0 .. x_T.
        is_first: [T+1, E] bool: x_t is the first observation of an episode; recurrent state is zeroed before it is consumed.
        actions: [T, E] int64 for one choice, [T, E, k] int64 for several, [T, E, k] float32 for real numbers: taken at x_t.
        rewards: [T, E] float32: for leaving x_t, unclipped.
        terminated: [T, E] bool: the environment ended at x_{t+1}, which is worth nothing. A time limit is not termination.
        behaviour_log_probs: [T, E] float32: log mu(a_t | x_t), of the weights that acted.
        initial_state: entry name to [E, ...]: recurrent state before x_0; empty for feed-forward networks.
        parameter_version: [E] int64: the one version that acted in all T steps of a column.
    """

    observations: Mapping[str, ArrayT]
    is_first: ArrayT
    actions: ArrayT
    rewards: ArrayT
    terminated: ArrayT
    behaviour_log_probs: ArrayT
    initial_state: Mapping[str, ArrayT]
    parameter_version: ArrayT

    @property
    def length(self) -> int:
        """T."""
        return int(self.actions.shape[0])

    @property
    def environments(self) -> int:
        """E: the number of columns, each one environment's trajectory."""
        return int(self.actions.shape[1])

    @property
    def reset_rows(self) -> ArrayT:
        """[T, E] bool: rows of zero weight, the one place where that is decided: x_{t+1} is not where action t led to.

        docs/primer.md, section 7.7.
        """
        rows: ArrayT = self.is_first[1:] & ~self.terminated
        return rows

    @property
    def env_steps(self) -> int:
        """Agent steps in it: T x E less the reset rows, in which no environment acted."""
        return self.length * self.environments - int(self.reset_rows.sum())

    def columns(self, start: int, stop: int) -> "Unroll[ArrayT]":
        """Returns columns start to stop (not included), as views."""
        return self.by_column(lambda array, axis: array[:, start:stop] if axis else array[start:stop])

    def by_column(self, function: Callable[[ArrayT, int], OtherT]) -> "Unroll[OtherT]":
        """Returns an unroll with `function` applied to every array and the number of its axis E."""
        return Unroll(
            observations={name: function(array, 1) for name, array in self.observations.items()},
            is_first=function(self.is_first, 1),
            actions=function(self.actions, 1),
            rewards=function(self.rewards, 1),
            terminated=function(self.terminated, 1),
            behaviour_log_probs=function(self.behaviour_log_probs, 1),
            initial_state={name: function(array, 0) for name, array in self.initial_state.items()},
            parameter_version=function(self.parameter_version, 0),
        )

    def arrays(self) -> list[ArrayT]:
        """Returns every array, in the same order for all unrolls of a run, whatever the order of their entries."""
        arrays: list[ArrayT] = [self.observations[name] for name in sorted(self.observations)]
        arrays += [self.is_first, self.actions, self.rewards, self.terminated, self.behaviour_log_probs]
        arrays += [self.initial_state[name] for name in sorted(self.initial_state)]
        arrays.append(self.parameter_version)
        return arrays

    def map(self, function: Callable[[ArrayT], OtherT]) -> "Unroll[OtherT]":
        """Returns an unroll with `function` applied to every array."""
        return self.by_column(lambda array, _: function(array))


def idle_unroll(spec: UnrollSpec) -> Unroll[np.ndarray]:
    """Returns an unroll in which nobody acts, [T, 1], of reset rows alone: every gradient of its loss is 0.

    A learner of several that has no batch takes the others' step on it.
    """
    steps, actions = spec.unroll_length, spec.environment.actions
    return Unroll(
        observations={
            name: np.zeros((steps + 1, 1, *entry.shape), entry.dtype) for name, entry in spec.environment.observations.items()
        },
        is_first=np.ones((steps + 1, 1), np.bool_),
        actions=np.zeros((steps, 1, *actions.shape), actions.dtype),
        rewards=np.zeros((steps, 1), np.float32),
        terminated=np.zeros((steps, 1), np.bool_),
        behaviour_log_probs=np.zeros((steps, 1), np.float32),
        initial_state={name: np.zeros((1, *entry.shape), entry.dtype) for name, entry in spec.state.items()},
        parameter_version=np.zeros(1, np.int64),
    )


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """Returns an array of any content that begins at a multiple of 64 bytes, as tensors of torch do.

    numpy's begin wherever there is room, and MKL adds up a product of small matrices in an order that depends on where they begin,
    so that equal inputs may give policies that differ in the last bit from one process to the next.
    """
    data: np.ndarray = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8).numpy()
    return data.view(dtype).reshape(shape)


def largest_float(unroll: Unroll[np.ndarray]) -> float:
    """Returns the largest magnitude among an unroll's floats."""
    floats = [array for array in unroll.arrays() if array.size and array.dtype.kind == "f"]
    return max((float(np.abs(array).max()) for array in floats), default=0.0)


def concatenate(unrolls: Sequence[Unroll[np.ndarray]]) -> Unroll[np.ndarray]:
    """Returns the unrolls side by side: [T, E_1 + E_2 + ...]. Copies, even a single one, so that the result is writable."""
    first = unrolls[0]
    return Unroll(
        observations={name: _beside([unroll.observations[name] for unroll in unrolls]) for name in first.observations},
        is_first=_beside([unroll.is_first for unroll in unrolls]),
        actions=_beside([unroll.actions for unroll in unrolls]),
        rewards=_beside([unroll.rewards for unroll in unrolls]),
        terminated=_beside([unroll.terminated for unroll in unrolls]),
        behaviour_log_probs=_beside([unroll.behaviour_log_probs for unroll in unrolls]),
        initial_state={name: _beside([unroll.initial_state[name] for unroll in unrolls], axis=0) for name in first.initial_state},
        parameter_version=_beside([unroll.parameter_version for unroll in unrolls], axis=0),
    )


def _beside(arrays: Sequence[np.ndarray], *, axis: int = 1) -> np.ndarray:
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return np.concatenate(arrays, axis=axis, out=aligned(shape, arrays[0].dtype))
