"""E environments stepped side by side, whatever their vector form and the way it restarts episodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from impala.config import AgentConfig, EnvironmentConfig
from impala.environments.making import Hosting, autoreset_mode, make_vector, render_fps
from impala.environments.padding import Inputs, check_fits, info_masks, union, with_last
from impala.environments.spaces import ActionWriter, ObservationReader, mask_entry
from impala.specs import ACTION_MASK, EnvironmentSpec
from impala.unroll import Episode


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What E environments returned for one action each.

    A row that leads to `is_first` and is not `terminated` says nothing about acting and gets zero importance weight: a reset, or a
    step whose true final observation is lost (see `VectorEnvironment`).

    Attributes:
        observations: entry name to [E, ...]: x_{t+1}; the true final observation where an episode ended. The arrays may be buffers
            that the next step overwrites: copy them before.
        is_first: [E] bool: x_{t+1} is the first observation of an episode.
        rewards: [E] float32; 0 on resets.
        terminated: [E] bool: x_{t+1} is worth nothing, the episode's end or, where the configuration says so, a life lost.
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
    """E environments stepped side by side, episodes restarting by themselves.

    In NEXT_STEP mode, which is asked for, an episode restarts one step after it ended: that step is a row of its own, its action
    ignored. A native form that has no other than SAME_STEP or DISABLED mode, and no single form to take instead, restarts at once:
    the row that ends the episode leads to the first observation of the next, so `is_first` is set in it. A terminated row keeps its
    reward, for nothing is asked of what it leads to; a truncated one, whose final observation is lost, is given up by its zero
    weight: one transition fewer, never a wrong target.

    Args:
        config: the environment.
        environments: E.
        last_action_reward: whether observations get the entries "last_action" ([E, *actions.shape]; choices counted from 1, 0 for
            none) and "last_reward" ([E] float32, unclipped), of the transition that led to them; none and 0 where `is_first`.
        spec: what observations are padded to, from `agent_spec`; its own without.
        task: which of an agent's environments this is.
        hosting: what this machine allows.
        rendered: whether `render` is called, which `hosting` of sync alone can do.

    Attributes:
        environments: E.
        spec: what observations and actions look like.

    Raises on construction:
        ConfigError: the environment is unknown, its package is missing, its module is not allowed, its arguments do not fit, or it
            does not fit `spec`.
        UnsupportedSpace: its spaces are not supported.
    """

    def __init__(
        self,
        config: EnvironmentConfig,
        environments: int,
        *,
        last_action_reward: bool = False,
        spec: EnvironmentSpec | None = None,
        task: int = 0,
        hosting: Hosting = Hosting(),  # noqa: B008  frozen
        rendered: bool = False,
    ) -> None:
        self.environments = environments
        self._envs = make_vector(config, environments, hosting, rendered=rendered)
        try:
            self._mode = autoreset_mode(self._envs)
            self._actions = ActionWriter(config.environment_id, self._envs.single_action_space)
            self._reader = ObservationReader(config.environment_id, self._envs.single_observation_space, self._actions.spec)
            own = EnvironmentSpec(observations=self._reader.entries, actions=self._actions.spec)
            if spec is None:
                own = self._with_masks(own)
                spec = with_last(own) if last_action_reward else own
            else:
                check_fits(config.environment_id, own, spec)
        except BaseException:
            self._envs.close()
            raise
        self.spec = spec
        self._inputs = Inputs(self._reader.entries, own.actions, spec, environments, task=task, last=last_action_reward)
        self._watches_lives = config.life_loss_terminates
        self._lives = np.zeros(environments, dtype=np.int64)
        self._done = np.zeros(environments, dtype=np.bool_)
        self._returns = np.zeros(environments, dtype=np.float64)
        self._lengths = np.zeros(environments, dtype=np.int64)

    def _with_masks(self, own: EnvironmentSpec) -> EnvironmentSpec:
        """Returns the spec with action masks where `info` has them, which only a reset can tell."""
        if own.actions.is_continuous or ACTION_MASK in own.observations:
            return own
        _, info = self._envs.reset(seed=0)
        if ACTION_MASK not in info:
            return own
        info_masks(info, self.environments, sum(own.actions.sizes))  # raises where they do not fit
        return EnvironmentSpec(observations={**own.observations, ACTION_MASK: mask_entry(own.actions)}, actions=own.actions)

    def reset(self, seed: int) -> Mapping[str, np.ndarray]:
        """Returns the first observations, entry name to [E, ...], of new episodes in every environment."""
        # Environments of different makes take 31 bits, and each gets one of the E seeds from this one on.
        observations, info = self._envs.reset(seed=seed % (2**31 - self.environments))
        self._done[:] = False
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._take_lives(info)
        self._inputs.forget()
        self._inputs.allow(info)
        return self._inputs.show(self._reader.read(observations))

    def step(self, actions: np.ndarray) -> Transition:
        """Returns the transitions that `actions`, [E, *spec.actions.shape], lead to."""
        observations, paid, terminated, truncated, info = self._envs.step(self._actions.write(actions))
        waits = self._mode is AutoresetMode.NEXT_STEP
        done = np.logical_or(terminated, truncated)
        resets, self._done = self._done, done if waits else self._done
        is_first = resets if waits else done
        # Held here, whatever a native vector form pays for a reset.
        paid = np.where(resets, 0.0, paid)
        terminated = np.logical_or(terminated, self._lost_life(info, done | resets))
        self._returns += paid
        self._lengths += ~resets
        ended = done.nonzero()[0]
        episodes = self._finish(ended) if ended.size else []
        self._inputs.allow(info)
        entries = self._reader.read(observations)
        if ended.size and self._mode is AutoresetMode.DISABLED:
            entries = self._restart(done, entries)
        self._inputs.remember(is_first, actions, paid)
        return Transition(
            observations=self._inputs.show(entries),
            is_first=is_first,
            rewards=paid.astype(np.float32),
            terminated=terminated,
            ended=ended,
            episodes=episodes,
        )

    def render(self) -> Any:
        """Returns what the first environment shows as its picture, as of the last `reset` or `step`; raises what it raises."""
        pictures = self._envs.render()
        assert pictures is not None
        return pictures[0]

    @property
    def render_fps(self) -> float:
        """How many steps are a second of a video."""
        return render_fps(self._envs)

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _finish(self, ended: np.ndarray) -> list[Episode]:
        episodes = [Episode(episode_return=float(self._returns[e]), length=int(self._lengths[e])) for e in ended]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return episodes

    def _restart(self, done: np.ndarray, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Resets the environments that are done and returns `entries` with their first observations in place of the final ones."""
        kept = {name: array.copy() for name, array in entries.items()}
        observations, info = self._envs.reset(options={"reset_mask": done.copy()})
        for name, array in self._reader.read(observations).items():
            kept[name][done] = array[done]
        self._inputs.allow(info, done)
        self._take_lives(info, done)
        return kept

    def _lost_life(self, info: Mapping[str, Any], apart: np.ndarray) -> np.ndarray | bool:
        """Returns [E], where fewer lives are left than a step before, not `apart`: where an episode ends or begins."""
        before = self._lives
        if not self._watches_lives or "lives" not in info:
            return False
        self._take_lives(info)
        lost: np.ndarray = (self._lives < before) & ~apart
        return lost

    def _take_lives(self, info: Mapping[str, Any], rows: Any = True) -> None:
        if "lives" in info:
            # Gymnasium's marks those environments that say something; native forms speak for all.
            self._lives = np.where(np.logical_and(info.get("_lives", True), rows), info["lives"], self._lives)


def agent_spec(agent: AgentConfig, hosting: Hosting = Hosting()) -> EnvironmentSpec:  # noqa: B008  frozen
    """Returns what the observations and actions of an agent look like in all its environments; makes each and closes it again.

    Raises:
        ConfigError, UnsupportedSpace: as `VectorEnvironment`; or two of the environments have nothing in common.
    """
    named = []
    for config in agent.environments:
        environment = VectorEnvironment(config, 1, hosting=hosting)
        environment.close()
        named.append((config.environment_id, environment.spec))
    spec = union(named)
    return with_last(spec) if agent.network.last_action_reward else spec
