"""One agent for several environments: the spec that holds them all, and their observations brought to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from impala.environments.spaces import mask_entry
from impala.errors import ConfigError
from impala.specs import ACTION_MASK, LAST_ACTION, LAST_REWARD, TASK, ActionSpec, EntrySpec, EnvironmentSpec


def union(named: Sequence[tuple[str, EnvironmentSpec]]) -> EnvironmentSpec:
    """Returns the spec that holds every environment's, given as (id, spec), with an entry "task" where there are several.

    Entries of one name are padded to the largest of each axis, single choices to the most options; "action_mask" then forbids what
    a task does not have.

    Raises:
        ConfigError: two environments have no spec in common.
    """
    if len(named) == 1:
        return named[0][1]
    actions = _union_actions(named)
    entries: dict[str, EntrySpec] = {}
    owner: dict[str, str] = {}
    for environment_id, spec in named:
        for name, entry in spec.observations.items():
            if name != ACTION_MASK:
                known = entries.get(name, entry)
                entries[name] = _union_entry(name, known, entry, owner.setdefault(name, environment_id), environment_id)
    if any(ACTION_MASK in spec.observations or spec.actions != actions for _, spec in named):
        entries[ACTION_MASK] = mask_entry(actions)
    task = EntrySpec(shape=(), dtype=np.dtype(np.uint8), categories=(len(named),))
    return EnvironmentSpec(observations={**entries, TASK: task}, actions=actions)


def _union_actions(named: Sequence[tuple[str, EnvironmentSpec]]) -> ActionSpec:
    first_id, first = named[0]
    for environment_id, spec in named:
        if spec.actions != first.actions and not (spec.actions.single and first.actions.single):
            raise ConfigError(f"env: {first_id} and {environment_id} have no actions in common: {first.actions}, {spec.actions}")
    return max((spec.actions for _, spec in named), key=lambda actions: actions.sizes)


def _union_entry(name: str, one: EntrySpec, other: EntrySpec, one_id: str, other_id: str) -> EntrySpec:
    if (one.dtype, one.categories, len(one.shape)) != (other.dtype, other.categories, len(other.shape)):
        raise ConfigError(f"env: {one_id} and {other_id} cannot share the entry {name!r} of their observations: {one}, {other}")
    return replace(one, shape=tuple(max(sizes) for sizes in zip(one.shape, other.shape, strict=True)))


def with_last(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Returns the spec with "last_action", choices counted from 1 and 0 for none, and "last_reward"."""
    actions = spec.actions
    action = EntrySpec(shape=actions.shape, dtype=actions.dtype, categories=tuple(size + 1 for size in actions.sizes))
    reward = EntrySpec(shape=(), dtype=np.dtype(np.float32))
    return replace(spec, observations={**spec.observations, LAST_ACTION: action, LAST_REWARD: reward})


def check_fits(environment_id: str, own: EnvironmentSpec, spec: EnvironmentSpec) -> None:
    """Sees that an environment's own spec can be padded to a run's.

    Raises:
        ConfigError: it cannot.
    """
    if own.actions != spec.actions and not (own.actions.single and spec.actions.single and own.actions.sizes <= spec.actions.sizes):
        raise ConfigError(f"env: {environment_id} was expected to have actions within {spec.actions}, came {own.actions}")
    for name, entry in own.observations.items():
        expected = spec.observations.get(name)
        if expected is None or not (name == ACTION_MASK or _fits(entry, expected)):
            raise ConfigError(f"env: {environment_id} was expected to have {expected} as entry {name!r}, came {entry}")


def _fits(entry: EntrySpec, expected: EntrySpec) -> bool:
    alike = (entry.dtype, entry.categories, len(entry.shape)) == (expected.dtype, expected.categories, len(expected.shape))
    return alike and all(size <= limit for size, limit in zip(entry.shape, expected.shape, strict=True))


class Inputs:
    """What the network is shown of E environments: their entries padded to `spec`, and what a run adds to them.

    Args:
        own: entry name to spec, as the environment has them.
        actions: the environment's own actions.
        spec: what to pad to.
        task: which of the run's environments this is.
        last: whether to fill "last_action" and "last_reward".
    """

    def __init__(
        self, own: Mapping[str, EntrySpec], actions: ActionSpec, spec: EnvironmentSpec, environments: int, *, task: int, last: bool
    ) -> None:
        self._environments, self._width = environments, sum(actions.sizes)
        whole = {name: np.zeros((environments, *entry.shape), dtype=entry.dtype) for name, entry in spec.observations.items()}
        if TASK in whole:
            whole[TASK][:] = task
        # Where an environment's own part of a padded entry lies.
        self._parts = {
            name: whole[name][(slice(None), *map(slice, entry.shape))]
            for name, entry in own.items()
            if name in whole and name != ACTION_MASK and entry != spec.observations[name]
        }
        self._masks = whole[ACTION_MASK][:, : self._width] if ACTION_MASK in whole else None
        self._masks_in_info = self._masks is not None and ACTION_MASK not in own
        self._padded_masks = self._masks is not None and spec.observations[ACTION_MASK].shape != (self._width,)
        self._last = (whole[LAST_ACTION], whole[LAST_REWARD]) if last else None
        self._counts_from = 0 if actions.is_continuous else 1
        passed_on = own.keys() - self._parts.keys() - {ACTION_MASK}
        self._whole = {name: array for name, array in whole.items() if name not in passed_on}

    def show(self, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns every entry of the spec, [E, ...], from the environment's own, whose arrays are passed on where they fit."""
        shown = {**entries, **self._whole}
        for name, part in self._parts.items():
            part[...] = entries[name]
        if self._masks is not None and not self._masks_in_info:
            self._masks[...] = entries[ACTION_MASK]
        if self._masks is not None and self._padded_masks:
            # Nothing allowed, as after an episode's end, means that anything is; but only of what there is.
            self._masks[~self._masks.any(1)] = True
        return shown

    def remember(self, is_first: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Shows these actions and rewards, [E, ...], as the last ones; none and 0 where `is_first`."""
        if self._last is not None:
            last_action, last_reward = self._last
            last_action[...] = actions + self._counts_from
            last_reward[...] = rewards
            last_action[is_first] = 0
            last_reward[is_first] = 0.0

    def forget(self) -> None:
        """Shows no last actions and rewards."""
        if self._last is not None:
            for array in self._last:
                array[...] = 0

    def allow(self, info: Mapping[str, Any], rows: Any = slice(None)) -> None:
        """Takes the action masks of `rows` from `info`, where that is where they are; everything is allowed where it has none.

        Raises:
            ConfigError: it has masks, and the run's spec none, which goes by the first reset's.
        """
        if self._masks is None and self._width and ACTION_MASK in info:
            raise ConfigError("action_mask: expected none in info, as in that of the first reset, by which the run goes; came some")
        if self._masks_in_info:
            assert self._masks is not None
            self._masks[rows] = info_masks(info, self._environments, self._width)[rows]


def info_masks(info: Mapping[str, Any], environments: int, width: int) -> np.ndarray:
    """Returns [environments, width] bool from `info`, a vector environment's: true where it says nothing.

    Raises:
        ConfigError: its masks are of another width.
    """
    masks = np.ones((environments, width), dtype=np.bool_)
    values = info.get(ACTION_MASK)
    if values is None:
        return masks
    if isinstance(values, tuple):  # a native form's, an array for each choice
        values = np.concatenate(values, axis=-1)
    if values.dtype == object:  # Gymnasium's way to gather lists, and the tuples that several choices have
        rows = [np.ones(width) if value is None else np.hstack(value) for value in values]
        wrong = next((row for row in rows if row.shape != (width,)), None)
        values = np.stack(rows) if wrong is None else wrong[None]
    if values.shape != masks.shape:
        raise ConfigError(f"action_mask: expected {width} numbers, one for each option of a choice, came {values.shape[1:]}")
    present = np.asarray(info.get(f"_{ACTION_MASK}", True))
    np.copyto(masks, values.astype(np.bool_), where=present.reshape(-1, 1))
    return masks
