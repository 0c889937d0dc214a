"""Gymnasium vector environments, brought to the unroll's convention. The only module that imports gymnasium."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from impala.errors import ConfigError, UnsupportedSpace
from impala.specs import EntrySpec, EnvironmentSpec
from impala.unroll import Episode

# The name of an observation that is a plain array rather than a Dict of them.
OBSERVATION = "observation"

# What Gymnasium, and the constructors of environments, raise at ids and arguments that they do not take.
_CANNOT_MAKE = (gymnasium.error.Error, ImportError, TypeError, ValueError, KeyError, AssertionError)

# Arguments of `gymnasium.make_vec` itself, which are the actor's to choose and not the learner's.
_RESERVED = frozenset({"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode"})


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What E environments returned for one action each.

    Attributes:
        observations: entry name to [E, ...]: x_{t+1}; the true final observation where an episode ended.
        is_first: [E] bool: x_{t+1} is the first observation of an episode, so this transition was a reset.
        rewards: [E] float32; 0 on resets.
        terminated: [E] bool.
        ended: indices, ascending, of the environments whose episode ended in this transition.
        episodes: those episodes, of true returns, in the same order.
    """

    observations: Mapping[str, np.ndarray]
    is_first: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    ended: np.ndarray
    episodes: list[Episode]


class VectorEnvironment:
    """E environments stepped side by side, episodes restarting by themselves one step after they end (NEXT_STEP).

    Raises on construction:
        ConfigError: the environment is unknown, its package is missing, or its arguments do not fit.
        UnsupportedSpace: its spaces are not supported.
    """

    def __init__(self, environment_id: str, kwargs: Mapping[str, Any], environments: int) -> None:
        self._envs = _make(environment_id, kwargs, environments)
        self.environments = environments
        try:
            self.spec, self._action_start = _spec(
                environment_id, self._envs.single_observation_space, self._envs.single_action_space
            )
        except UnsupportedSpace:
            self._envs.close()
            raise
        self._done = np.zeros(environments, dtype=np.bool_)
        self._returns = np.zeros(environments, dtype=np.float64)
        self._lengths = np.zeros(environments, dtype=np.int64)

    def reset(self, seed: int) -> Mapping[str, np.ndarray]:
        """Returns the first observations, entry name to [E, ...], of new episodes in every environment."""
        observations, _ = self._envs.reset(seed=seed)
        self._done[:] = False
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._observations(observations)

    def step(self, actions: np.ndarray) -> Transition:
        """Returns the transitions that `actions`, [E] int64 from 0, lead to. Environments whose episode had ended are reset."""
        is_first = self._done
        observations, rewards, terminated, truncated, _ = self._envs.step(actions + self._action_start)
        self._done = np.logical_or(terminated, truncated)
        # Held here, whatever a native vector form pays for a reset.
        rewards = np.where(is_first, np.float32(0.0), np.asarray(rewards, dtype=np.float32))
        self._returns += rewards
        self._lengths += ~is_first
        ended = np.flatnonzero(self._done)
        episodes = [Episode(episode_return=float(self._returns[e]), length=int(self._lengths[e])) for e in ended]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return Transition(
            observations=self._observations(observations),
            is_first=is_first,
            rewards=rewards,
            terminated=np.asarray(terminated, dtype=np.bool_),
            ended=ended,
            episodes=episodes,
        )

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _observations(self, observations: Any) -> Mapping[str, np.ndarray]:
        return {OBSERVATION: np.asarray(observations, dtype=self.spec.observations[OBSERVATION].dtype)}


def environment_spec(environment_id: str, kwargs: Mapping[str, Any]) -> EnvironmentSpec:
    """Returns an environment's spec; makes one and closes it again.

    Raises:
        ConfigError, UnsupportedSpace: as `VectorEnvironment`.
    """
    environment = VectorEnvironment(environment_id, kwargs, 1)
    environment.close()
    return environment.spec


def record_episode(
    environment_id: str,
    kwargs: Mapping[str, Any],
    folder: Path,
    *,
    act: Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray],
    seed: int,
) -> float:
    """Plays one episode, writes it to `folder` as an mp4 file, and returns its return.

    Args:
        act: from observations, entry name to [1, ...], and is_first, [1], to actions, [1] from 0.

    Raises:
        ConfigError: as `VectorEnvironment`, or what rendering or writing needs is not installed.
    """
    try:
        plain = gymnasium.make(environment_id, render_mode="rgb_array", **kwargs)
    except _CANNOT_MAKE as error:
        raise _unknown(environment_id, kwargs, error) from error
    try:
        environment = gymnasium.wrappers.RecordVideo(plain, str(folder), disable_logger=True)
    except (gymnasium.error.Error, ImportError) as error:
        plain.close()
        raise _no_video(error) from error
    spec, start = _spec(environment_id, plain.observation_space, plain.action_space)
    try:
        observation, _ = environment.reset(seed=seed)
        episode_return, is_first, done = 0.0, np.array([True]), False
        while not done:
            entries = {OBSERVATION: np.asarray(observation, dtype=spec.observations[OBSERVATION].dtype)[np.newaxis]}
            observation, reward, terminated, truncated, _ = environment.step(int(act(entries, is_first)[0]) + start)
            episode_return += float(reward)
            is_first, done = np.array([False]), terminated or truncated
    except (gymnasium.error.Error, ImportError) as error:
        raise _no_video(error) from error
    finally:
        environment.close()  # type: ignore[no-untyped-call]
    return episode_return


def _make(environment_id: str, kwargs: Mapping[str, Any], environments: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    if ":" in environment_id:
        # Gymnasium imports what stands before the colon, and this id may have come from a learner.
        raise ConfigError(f"environment: expected a registered id, came {environment_id!r}, which would import a module")
    reserved = sorted(kwargs.keys() & _RESERVED)
    if reserved:
        raise ConfigError(f"environment: expected keyword arguments of {environment_id} itself, came {', '.join(reserved)}")
    try:
        envs = gymnasium.make_vec(environment_id, num_envs=environments, **kwargs)
        if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            # A native vector form with another mode of restarting: Gymnasium's own wrapper of single ones has the right one.
            envs.close()
            envs = gymnasium.make_vec(
                environment_id,
                num_envs=environments,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
                **kwargs,
            )
    except _CANNOT_MAKE as error:
        raise _unknown(environment_id, kwargs, error) from error
    return envs


def _unknown(environment_id: str, kwargs: Mapping[str, Any], error: Exception) -> ConfigError:
    given = f" with {dict(kwargs)}" if kwargs else ""
    return ConfigError(f"environment: cannot make {environment_id!r}{given}: {' '.join(str(error).split())}")


def _no_video(error: Exception) -> ConfigError:
    return ConfigError(f"video: {' '.join(str(error).split())}; pip install 'impala-grpc[video]'")


def _spec(environment_id: str, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> tuple[EnvironmentSpec, int]:
    """Returns the spec of an environment's spaces, and the number that its first action has."""
    if not isinstance(observation, gymnasium.spaces.Box) or len(observation.shape) != 1:
        raise UnsupportedSpace(f"environment: {environment_id} has observations {observation}; supported: Box of one axis")
    if not isinstance(action, gymnasium.spaces.Discrete):
        raise UnsupportedSpace(f"environment: {environment_id} has actions {action}; supported: Discrete")
    spec = EnvironmentSpec(
        observations={OBSERVATION: EntrySpec(shape=tuple(observation.shape), dtype=np.dtype(np.float32))},
        num_actions=int(action.n),
    )
    return spec, int(action.start)
