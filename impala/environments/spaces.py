"""Gymnasium spaces as specs, and what lies in them as named arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from impala.errors import UnsupportedSpace
from impala.specs import ACTION_MASK, LAST_ACTION, LAST_REWARD, TASK, ActionSpec, EntrySpec

# The name of an observation that is a plain array rather than a Dict or a Tuple of them.
OBSERVATION = "observation"

_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
_ACTIONS = "Discrete, MultiDiscrete, MultiBinary, and Box of floats, none of them empty"

# What a run adds to an environment's entries by itself: an environment's own of such a name would be taken for it.
_TAKEN = frozenset({TASK, LAST_ACTION, LAST_REWARD})

# An unroll has two axes more, and a tensor eight at most on the wire.
_MOST_AXES = 6


@dataclass(frozen=True)
class _Leaf:
    """Where an entry lies in a nested observation, and the number that its first category has."""

    path: tuple[Any, ...]
    entry: EntrySpec
    start: Any = None


class ObservationReader:
    """Turns the observations of E environments, as a Gymnasium vector environment returns them, into named arrays.

    Entries of Dict and Tuple are named by their keys and indices, joined by "."; anything else is "observation". uint8 and bool
    stay what they are, categories become int64 from 0, and other numbers float32. An entry `action_mask` at the top becomes
    bool, [sum(sizes)].

    Attributes:
        entries: entry name to its spec.

    Raises on construction:
        UnsupportedSpace: the space, or a part of it, is not supported.
    """

    def __init__(self, environment_id: str, space: Space[Any], actions: ActionSpec) -> None:
        self._leaves: dict[str, _Leaf] = {}
        for path, part in _parts(space):
            name = ".".join(str(key) for key in path) or OBSERVATION
            leaf = _mask_leaf(path, part, actions) if path[:1] == (ACTION_MASK,) else _leaf(path, part)
            if leaf is None or name in self._leaves or name in _TAKEN or not _holds(leaf.entry):
                where = f" in {space}" if path else ""
                raise UnsupportedSpace(
                    f"environment: {environment_id} has observations {part}{where} (entry {name!r}); supported: "
                    f"{_OBSERVATIONS}, of at least one number and at most {_MOST_AXES} axes; entries of different names, none of "
                    f"them {', '.join(sorted(_TAKEN))}; an action_mask, one array, with a number for each option of the choices"
                )
            self._leaves[name] = leaf
        self.entries: Mapping[str, EntrySpec] = {name: leaf.entry for name, leaf in self._leaves.items()}

    def read(self, observations: Any) -> dict[str, np.ndarray]:
        """Returns entry name to [E, ...]: the environment's own arrays where they are right as they are, else copies."""
        return {name: _read(leaf, observations) for name, leaf in self._leaves.items()}


def _parts(space: Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _parts(part, (*path, index))
    else:
        yield path, space


def _leaf(path: tuple[Any, ...], space: Space[Any]) -> _Leaf | None:
    if isinstance(space, spaces.Discrete):
        entry = EntrySpec(shape=(), dtype=np.dtype(np.int64), categories=(int(space.n),))
        return _Leaf(path, entry, int(space.start) or None)
    if isinstance(space, spaces.MultiDiscrete):
        categories = tuple(int(n) for n in space.nvec.ravel())
        entry = EntrySpec(shape=tuple(space.nvec.shape), dtype=np.dtype(np.int64), categories=categories)
        return _Leaf(path, entry, space.start if np.any(space.start) else None)
    if isinstance(space, spaces.MultiBinary):
        return _Leaf(path, EntrySpec(shape=tuple(space.shape), dtype=np.dtype(np.bool_)))
    if isinstance(space, spaces.Box):
        dtype = space.dtype if space.dtype in (np.uint8, np.bool_) else np.float32
        return _Leaf(path, EntrySpec(shape=tuple(space.shape), dtype=np.dtype(dtype)))
    return None


def _holds(entry: EntrySpec) -> bool:
    return entry.size > 0 and len(entry.shape) <= _MOST_AXES


def _mask_leaf(path: tuple[Any, ...], space: Space[Any], actions: ActionSpec) -> _Leaf | None:
    whole = path == (ACTION_MASK,) and isinstance(space, spaces.Box | spaces.MultiBinary)
    return _Leaf(path, mask_entry(actions)) if whole and actions.sizes and space.shape == (sum(actions.sizes),) else None


def mask_entry(actions: ActionSpec) -> EntrySpec:
    """Returns the entry that says which actions are possible: bool, the options of all choices one after another."""
    return EntrySpec(shape=(sum(actions.sizes),), dtype=np.dtype(np.bool_))


def _read(leaf: _Leaf, observations: Any) -> np.ndarray:
    for key in leaf.path:
        observations = observations[key]
    array = np.asarray(observations)
    if leaf.start is not None:
        array = array - leaf.start
    return array if array.dtype == leaf.entry.dtype else array.astype(leaf.entry.dtype)


class ActionWriter:
    """Turns actions in the form of `ActionSpec` into an environment's own.

    Choices are numbered from the space's start. A real number whose dimension has two finite bounds is mapped from [-1, 1] onto
    them, others pass; all are clipped to the bounds there are.

    Attributes:
        spec: what an action is.

    Raises on construction:
        UnsupportedSpace: the space is not supported.
    """

    def __init__(self, environment_id: str, space: Space[Any]) -> None:
        spec = _action_spec(space)
        if spec is None:
            raise UnsupportedSpace(f"environment: {environment_id} has actions {space}; supported: {_ACTIONS}")
        self.spec = spec
        self._shape, self._dtype = tuple(space.shape or ()), space.dtype
        start = getattr(space, "start", 0)
        self._start = start if np.any(start) else None
        if isinstance(space, spaces.Box):
            low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
            bounded = np.isfinite(low) & np.isfinite(high)
            self._low, self._high = low, high
            # Halves first: the difference of two bounds may be more than a float holds.
            self._centre = np.where(bounded, 0.5 * np.where(bounded, low, 0.0) + 0.5 * np.where(bounded, high, 0.0), 0.0)
            self._scale = np.where(bounded, 0.5 * np.where(bounded, high, 0.0) - 0.5 * np.where(bounded, low, 0.0), 1.0)
            self._limit = np.where(bounded, 1.0, np.inf)

    def write(self, actions: np.ndarray) -> np.ndarray:
        """Returns [E, *space.shape], in the space's dtype, for actions [E, *spec.shape]."""
        if self.spec.is_continuous:
            scaled = self._centre + self._scale * np.clip(actions, -self._limit, self._limit, dtype=np.float64)
            actions = np.clip(scaled, self._low, self._high)
        own = actions.astype(self._dtype, copy=False).reshape(len(actions), *self._shape)
        return own if self._start is None else own + self._start


def _action_spec(space: Space[Any]) -> ActionSpec | None:
    if isinstance(space, spaces.Discrete):
        return ActionSpec(sizes=(int(space.n),), single=True)
    if not np.prod(space.shape or ()):
        return None
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(sizes=tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec(sizes=(2,) * int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return ActionSpec(dimensions=int(np.prod(space.shape)))
    return None
