"""The actor: steps environments with one version of the weights for a whole unroll."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impala.environments import VectorEnvironment
from impala.errors import EnvironmentFault, InvalidMessage
from impala.networks import Network, State
from impala.specs import EnvironmentSpec
from impala.unroll import Episode, Unroll, aligned


@dataclass(frozen=True, kw_only=True)
class Collected:
    """An unroll, and the episodes that finished in it. The unroll's arrays are the actor's buffers: copy before the next.

    `environment_seconds` and `inference_seconds` are what stepping the environments and choosing actions took.
    """

    unroll: Unroll[np.ndarray]
    episodes: list[Episode]
    environment_seconds: float
    inference_seconds: float


class Actor:
    """Collects unrolls of T steps from E environments, batched through the network.

    Args:
        environment: already made, not yet reset.
        network: the behaviour policy; its weights are replaced by `load_parameters`.
        unroll_length: T.
        seed: of environments and sampling.
    """

    def __init__(self, environment: VectorEnvironment, network: Network, *, unroll_length: int, seed: int) -> None:
        self._environment = environment
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._generator = torch.Generator().manual_seed(seed)
        # The live ones, by name.
        self._weights = dict(network.state_dict(keep_vars=True))
        self._version = 0
        self._state: State = network.initial_state(environment.environments)
        self._buffers = _buffers(environment.spec, unroll_length, environment.environments, self._state)
        self._distribution = network.distribution
        self._policy = torch.empty(unroll_length, environment.environments, self._distribution.num_outputs)
        # The first row 0 is written where the last row of an unroll before it would be.
        self._write_observations(unroll_length, environment.reset(seed))
        self._buffers.is_first[unroll_length] = True

    @property
    def parameter_version(self) -> int:
        """Of the weights that act; 0 before there are any."""
        return self._version

    @torch.no_grad()
    def load_parameters(self, version: int, parameters: Mapping[str, Tensor]) -> None:
        """Acts with these weights, and running statistics, from the next unroll on.

        Raises:
            InvalidMessage: they are not this network's, by name or by shape.
        """
        check_parameters(parameters, self._weights)
        # A tenth of the time of load_state_dict, which matters where an unroll takes milliseconds.
        for name, tensor in self._weights.items():
            tensor.copy_(parameters[name])
        self._version = version

    @torch.inference_mode()
    def collect(self, moments: list[float] | None = None) -> Collected:
        """Returns the next T transitions of every environment, all chosen by the weights that are loaded now.

        Args:
            moments: gets three for each step, by `time.perf_counter`: choosing begins, stepping begins, stepping ends.

        Raises:
            EnvironmentFault: a reward or an observation is NaN or infinite.
        """
        buffers, episodes = self._buffers, list[Episode]()
        length = buffers.length
        self._begin(length)
        clock = time.perf_counter
        environment_seconds, began = 0.0, clock()
        noise = self._distribution.noise((length, buffers.environments), self._generator)
        inference_seconds = clock() - began
        for t in range(length):
            began = clock()
            observations = {name: torch.from_numpy(array[t]) for name, array in buffers.observations.items()}
            policy, self._state = self._network.act(observations, torch.from_numpy(buffers.is_first[t]), self._state)
            self._policy[t] = policy
            actions = self._distribution.choose(policy, noise[t]).numpy()
            chosen = clock()
            transition = self._environment.step(actions)
            environment_seconds += clock() - chosen
            inference_seconds += chosen - began
            if moments is not None:
                moments += (began, chosen, clock())
            buffers.actions[t] = actions
            buffers.rewards[t] = transition.rewards
            buffers.terminated[t] = transition.terminated
            buffers.is_first[t + 1] = transition.is_first
            self._write_observations(t + 1, transition.observations)
            episodes += transition.episodes
        _check_finite(buffers)
        # Once for all T steps; the same numbers as step by step, at a twentieth of the calls.
        log_probs = self._distribution.log_prob(self._policy, torch.from_numpy(buffers.actions))
        buffers.behaviour_log_probs[:] = log_probs.numpy()
        return Collected(
            unroll=buffers, episodes=episodes, environment_seconds=environment_seconds, inference_seconds=inference_seconds
        )

    def _begin(self, length: int) -> None:
        """Makes the last observation x_T, of the unroll before, x_0 of this one."""
        for array in self._buffers.observations.values():
            array[0] = array[length]
        self._buffers.is_first[0] = self._buffers.is_first[length]
        for name, array in self._buffers.initial_state.items():
            array[:] = self._state[name].numpy()
        self._buffers.parameter_version[:] = self._version

    def _write_observations(self, row: int, observations: Mapping[str, np.ndarray]) -> None:
        for name, array in self._buffers.observations.items():
            array[row] = observations[name]


def _check_finite(unroll: Unroll[np.ndarray]) -> None:
    # Here, for the learner refuses such an unroll, and a refusal is for good: an actor that is started again may do well.
    for name, array in {"reward": unroll.rewards, **unroll.observations}.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            step, environment, *_ = np.argwhere(~np.isfinite(array))[0]
            came = array[step, environment]
            value = came if came.ndim == 0 else came[~np.isfinite(came)][0]
            place = f"environment {environment}, step {step} of an unroll"
            raise EnvironmentFault(f"{name}: expected finite values, came {value} from {place}")


def check_parameters(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Holds what a learner sent against a network's weights.

    Raises:
        InvalidMessage: another name or another shape.
    """
    came = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if came != wanted:
        odd = min(name for name in came.keys() | wanted.keys() if came.get(name) != wanted.get(name))
        raise InvalidMessage("parameters", f"{odd[:80]} of shape {wanted.get(odd)}", f"{came.get(odd)}")


def _buffers(spec: EnvironmentSpec, length: int, environments: int, state: State) -> Unroll[np.ndarray]:
    rows = (length, environments)
    return Unroll(
        observations={
            name: _zeros((length + 1, environments, *entry.shape), entry.dtype) for name, entry in spec.observations.items()
        },
        is_first=_zeros((length + 1, environments), np.dtype(np.bool_)),
        actions=_zeros((*rows, *spec.actions.shape), spec.actions.dtype),
        rewards=_zeros(rows, np.dtype(np.float32)),
        terminated=_zeros(rows, np.dtype(np.bool_)),
        behaviour_log_probs=_zeros(rows, np.dtype(np.float32)),
        initial_state={name: np.zeros_like(tensor.numpy()) for name, tensor in state.items()},
        parameter_version=_zeros((environments,), np.dtype(np.int64)),
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    array = aligned(shape, dtype)
    array.fill(0)
    return array
