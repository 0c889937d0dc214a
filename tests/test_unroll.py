"""The Unroll: its counts, and cutting it into columns and putting them together again."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from impala.unroll import Unroll, concatenate
from tests.samples import make_unroll


def make_recurrent_unroll(*, seed: int = 0, environments: int = 9) -> Unroll[np.ndarray]:
    """Returns an unroll with a recurrent state, a version for each column, and resets in it."""
    random = np.random.default_rng(seed)
    return make_unroll(
        environments=environments,
        seed=seed,
        resets=tuple((int(random.integers(0, 6)), e) for e in range(environments)),
        terminated=random.uniform(size=(5, environments)) < 0.2,
        initial_state={"hidden": random.normal(size=(environments, 2)).astype(np.float32)},
        parameter_version=np.arange(environments, dtype=np.int64),
    )


def arrays(unroll: Unroll[Any]) -> dict[str, Any]:
    """Returns every array of an unroll by the path of its field."""
    found: dict[str, Any] = {}
    for field in fields(unroll):
        value = getattr(unroll, field.name)
        found.update({f"{field.name}.{name}": array for name, array in value.items()} if isinstance(value, dict) else {})
        found.update({} if isinstance(value, dict) else {field.name: value})
    return found


def assert_equal(left: Unroll[np.ndarray], right: Unroll[np.ndarray]) -> None:
    one, other = arrays(left), arrays(right)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def random_cuts(random: np.random.Generator, environments: int) -> list[tuple[int, int]]:
    """Returns neighbouring ranges of columns that cover all of them."""
    cuts = random.choice(np.arange(1, environments), size=random.integers(0, environments - 1), replace=False)
    edges = [0, *sorted(cuts.tolist()), environments]
    return list(pairwise(edges))


def test_length_and_environments_are_those_of_the_actions() -> None:
    unroll = make_unroll(length=5, environments=3)
    assert (unroll.length, unroll.environments) == (5, 3)


def test_env_steps_leave_out_the_reset_rows() -> None:
    assert make_unroll(length=5, environments=3).env_steps == 15
    assert make_unroll(length=5, environments=3, resets=((2, 0), (5, 1))).env_steps == 13


@pytest.mark.parametrize("convert", [lambda array: array, torch.from_numpy], ids=["arrays", "tensors"])
def test_a_row_that_begins_the_next_episode_is_a_reset_row_unless_it_terminated(convert: Any) -> None:
    terminated = np.zeros((5, 3), dtype=np.bool_)
    # A reset row after a termination, a restart at once after one, a life lost in mid-episode, and nothing at all.
    terminated[[0, 3, 2], [0, 1, 2]] = True
    unroll = make_unroll(length=5, environments=3, resets=((2, 0), (4, 1), (5, 2)), terminated=terminated).map(convert)
    assert np.argwhere(np.asarray(unroll.reset_rows)).tolist() == [[1, 0], [4, 2]]
    assert unroll.env_steps == 13


def test_an_unroll_that_begins_an_episode_has_no_reset_row_for_it() -> None:
    # is_first[0] belongs to the row before: the last of the unroll before, which counted it.
    assert make_unroll(length=5, environments=3, resets=((0, 0), (0, 1), (0, 2))).env_steps == 15


@pytest.mark.parametrize("seed", range(10))
def test_the_env_steps_of_columns_add_up_to_the_whole(seed: int) -> None:
    unroll = make_recurrent_unroll(seed=seed)
    cuts = random_cuts(np.random.default_rng(seed), 9)
    assert sum(unroll.columns(start, stop).env_steps for start, stop in cuts) == unroll.env_steps


def test_columns_are_views() -> None:
    unroll = make_recurrent_unroll()
    whole = arrays(unroll)
    for name, array in arrays(unroll.columns(2, 5)).items():
        assert np.shares_memory(array, whole[name]), name


def test_arrays_come_in_one_order_whatever_that_of_the_entries() -> None:
    unroll = make_recurrent_unroll()
    entries = {"b": unroll.rewards, "a": unroll.actions}
    one = replace(unroll, observations=entries, initial_state=entries)
    other = replace(unroll, observations=dict(sorted(entries.items())), initial_state=dict(sorted(entries.items())))
    assert [id(array) for array in one.arrays()] == [id(array) for array in other.arrays()]
    assert {id(array) for array in unroll.arrays()} == {id(array) for array in arrays(unroll).values()}


def test_columns_hold_the_environments_that_were_asked_for() -> None:
    unroll = make_recurrent_unroll()
    part = unroll.columns(2, 5)
    assert (part.length, part.environments) == (5, 3)
    assert part.parameter_version.tolist() == [2, 3, 4]
    np.testing.assert_array_equal(part.initial_state["hidden"], unroll.initial_state["hidden"][2:5])
    np.testing.assert_array_equal(part.observations["observation"], unroll.observations["observation"][:, 2:5])


@pytest.mark.parametrize("seed", range(20))
def test_columns_put_together_again_are_the_original(seed: int) -> None:
    unroll = make_recurrent_unroll(seed=seed)
    cuts = random_cuts(np.random.default_rng(seed), 9)
    assert_equal(concatenate([unroll.columns(start, stop) for start, stop in cuts]), unroll)


def test_concatenated_unrolls_are_a_writable_copy_even_of_a_single_one() -> None:
    unroll = make_recurrent_unroll()
    for array in arrays(unroll).values():
        array.flags.writeable = False
    whole = arrays(unroll)
    for name, array in arrays(concatenate([unroll])).items():
        assert array.flags.writeable, name
        assert not np.shares_memory(array, whole[name]), name


def test_what_is_put_side_by_side_begins_where_tensors_do() -> None:
    # A sum in a matrix product depends on where its numbers begin.
    unrolls = [concatenate([make_recurrent_unroll(environments=columns)] * 2) for columns in range(1, 9)]
    assert {array.ctypes.data % 64 for unroll in unrolls for array in unroll.arrays()} == {0}


def test_map_reaches_every_array_and_keeps_its_place() -> None:
    unroll = make_recurrent_unroll()
    tensors = unroll.map(lambda array: torch.from_numpy(array.copy()))
    assert all(isinstance(tensor, torch.Tensor) for tensor in arrays(tensors).values())
    assert_equal(tensors.map(lambda tensor: tensor.numpy()), unroll)
