"""The unroll codec: an actor's unroll arrives as it was, and nothing that training could choke on arrives at all."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from impala.errors import InvalidMessage
from impala.specs import ActionSpec, EntrySpec, UnrollSpec, discrete
from impala.unroll import ActorTimes, Episode, Unroll
from impala.wire import (
    decode_episodes,
    decode_times,
    decode_unroll,
    encode_episodes,
    encode_tensor,
    encode_times,
    encode_unroll,
)
from impala.wire.tensors import decode_named_tensors
from protos import impala_pb2 as pb
from tests.samples import SPEC, make_unroll

# As SPEC, but of a recurrent network: T = 5, E up to 8, two actions.
RECURRENT = replace(
    SPEC,
    state={
        "core.h": EntrySpec(shape=(6,), dtype=np.dtype(np.float32)),
        "frames": EntrySpec(shape=(2, 3), dtype=np.dtype(np.uint8)),
    },
)

# An entry of an observation: two cards, of 4 and of 13 kinds.
CARDS = EntrySpec(shape=(2,), dtype=np.dtype(np.uint8), categories=(4, 13))

ROWS = ("actions", "rewards", "terminated", "behaviour_log_probs")
TENSORS = (*ROWS, "is_first")


def make_recurrent_unroll(environments: int = 3, **arrays: Any) -> Unroll[np.ndarray]:
    random = np.random.default_rng(1)
    state = {
        "core.h": random.normal(size=(environments, 6)).astype(np.float32),
        "frames": random.integers(0, 256, size=(environments, 2, 3)).astype(np.uint8),
    }
    return make_unroll(environments=environments, **{"initial_state": state, **arrays})


def make_message(**replaced: Any) -> pb.Unroll:
    """Returns a valid message of `RECURRENT`, E = 3, with fields replaced: arrays, tensors or plain values."""
    message = encode_unroll(make_recurrent_unroll())
    for name, value in replaced.items():
        if isinstance(value, np.ndarray | pb.Tensor):
            getattr(message, name).CopyFrom(encode_tensor(value) if isinstance(value, np.ndarray) else value)
        else:
            setattr(message, name, value)
    return message


def with_actions(actions: ActionSpec) -> UnrollSpec:
    return replace(RECURRENT, environment=replace(RECURRENT.environment, actions=actions))


def with_cards(highest: tuple[int, int]) -> tuple[pb.Unroll, UnrollSpec]:
    """Returns a message whose observations have CARDS, all 0 but for those of one environment at one time, and its spec."""
    cards = np.zeros((6, 3, 2), dtype=np.uint8)
    cards[5, 1] = highest
    message = make_message()
    message.observations.add(name="cards", tensor=encode_tensor(cards))
    environment = RECURRENT.environment
    environment = replace(environment, observations={**environment.observations, "cards": CARDS})
    return message, replace(RECURRENT, environment=environment)


def refusal(message: pb.Unroll, spec: UnrollSpec = RECURRENT) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode_unroll(message, spec)
    assert str(caught.value).startswith(f"{caught.value.field}: expected ")
    return caught.value


def entry(message: pb.Unroll, group: str, name: str) -> pb.NamedTensor:
    named: pb.NamedTensor = next(named for named in getattr(message, group) if named.name == name)
    return named


def assert_equal(came: Unroll[np.ndarray], sent: Unroll[np.ndarray]) -> None:
    for field in fields(Unroll):
        one, other = getattr(came, field.name), getattr(sent, field.name)
        pairs = [(one[name], other[name]) for name in other] if isinstance(other, Mapping) else [(one, other)]
        assert not isinstance(other, Mapping) or one.keys() == other.keys()
        for array, expected in pairs:
            assert array.dtype == expected.dtype, field.name
            np.testing.assert_array_equal(array, expected, err_msg=field.name)


# --- What comes in


@pytest.mark.parametrize("environments", [1, 3, 8])
def test_an_unroll_comes_back_equal(environments: int) -> None:
    unroll = make_unroll(environments=environments, version=7, resets=((0, 0), (3, environments - 1), (5, 0)))
    message = pb.Unroll.FromString(encode_unroll(unroll).SerializeToString())
    assert_equal(decode_unroll(message, SPEC), unroll)


def test_recurrent_state_comes_back_equal() -> None:
    unroll = make_recurrent_unroll(environments=2)
    assert_equal(decode_unroll(pb.Unroll.FromString(encode_unroll(unroll).SerializeToString()), RECURRENT), unroll)


def test_terminations_come_back_equal() -> None:
    terminated = np.random.default_rng(0).integers(0, 2, size=(5, 3)).astype(np.bool_)
    assert decode_unroll(encode_unroll(make_unroll(terminated=terminated)), SPEC).terminated.tolist() == terminated.tolist()


def test_every_column_carries_the_version_of_the_message() -> None:
    came = decode_unroll(make_message(parameter_version=2**63 - 1), RECURRENT).parameter_version
    assert came.dtype == np.int64
    assert came.tolist() == [2**63 - 1] * 3


def test_a_decoded_unroll_is_read_only_but_for_its_versions() -> None:
    unroll = decode_unroll(make_message(), RECURRENT)
    arrays = [*unroll.observations.values(), *unroll.initial_state.values(), *(getattr(unroll, name) for name in TENSORS)]
    assert [array.flags.writeable for array in arrays] == [False] * 8


def test_an_unroll_of_several_versions_is_not_encoded() -> None:
    with pytest.raises(AssertionError, match="one version acts in all steps"):
        encode_unroll(make_unroll(parameter_version=np.array([1, 1, 2])))


def test_a_log_probability_of_0_is_taken() -> None:
    log_probs = np.zeros((5, 3), dtype=np.float32)
    assert decode_unroll(make_message(behaviour_log_probs=log_probs), RECURRENT).behaviour_log_probs.max() == 0.0


# Actions, and what [T, E, ...] of them is like that are all allowed.
SPACES: dict[str, tuple[ActionSpec, Callable[[np.random.Generator], np.ndarray]]] = {
    "a choice": (discrete(15), lambda random: random.permutation(15).reshape(5, 3)),
    "a choice with an axis": (ActionSpec(sizes=(15,)), lambda random: random.permutation(15).reshape(5, 3, 1)),
    "choices": (ActionSpec(sizes=(15, 3)), lambda random: np.stack([np.arange(15), np.arange(15) % 3], -1).reshape(5, 3, 2)),
    "real numbers": (ActionSpec(dimensions=2), lambda random: (1e6 * random.normal(size=(5, 3, 2))).astype(np.float32)),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_action_of_the_environment_is_taken(name: str) -> None:
    space, make = SPACES[name]
    unroll = make_recurrent_unroll(actions=make(np.random.default_rng(0)))
    message = pb.Unroll.FromString(encode_unroll(unroll).SerializeToString())
    assert_equal(decode_unroll(message, with_actions(space)), unroll)


def test_the_log_density_of_real_numbers_may_be_above_0() -> None:
    log_probs = np.full((5, 3), 9.0, dtype=np.float32)
    message = make_message(behaviour_log_probs=log_probs, actions=np.zeros((5, 3, 2), dtype=np.float32))
    assert decode_unroll(message, with_actions(ActionSpec(dimensions=2))).behaviour_log_probs.max() == 9.0


def test_every_category_of_an_entry_is_taken() -> None:
    message, spec = with_cards((3, 12))
    assert decode_unroll(message, spec).observations["cards"][5, 1].tolist() == [3, 12]


# --- What does not: types, shapes, bytes


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8], ids=lambda dtype: dtype.__name__)
def test_a_tensor_of_another_dtype_is_refused(name: str, dtype: Any) -> None:
    array = getattr(make_recurrent_unroll(), name).astype(dtype)
    assert refusal(make_message(**{name: array})).field == f"unroll.{name}.dtype"


@pytest.mark.parametrize(
    ("group", "name"), [("observations", "observation"), ("initial_state", "core.h"), ("initial_state", "frames")]
)
def test_an_entry_of_another_dtype_is_refused(group: str, name: str) -> None:
    message = make_message()
    named = entry(message, group, name)
    named.tensor.CopyFrom(encode_tensor(getattr(make_recurrent_unroll(), group)[name].astype(np.float64)))
    assert refusal(message).field == f"unroll.{group}[{name}].dtype"


def _other_shapes(array: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "T too small": array[:-1],
        "T too large": np.concatenate([array, array[:1]]),
        "E too small": array[:, :-1],
        "E too large": np.concatenate([array, array[:, :1]], axis=1),
        "axes swapped": np.ascontiguousarray(array.swapaxes(0, 1)),
        "an axis more": array[..., None],
        "an axis less": array[:, 0],
        "a scalar": np.array(array.flat[0]),
        "no T": array[:0],
        "no E": array[:, :0],
    }


OTHER_SHAPES = tuple(_other_shapes(np.zeros((2, 2))))


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize("name", sorted(set(TENSORS) - {"actions"}))
def test_a_tensor_of_another_shape_is_refused(name: str, shape: str) -> None:
    array = _other_shapes(getattr(make_recurrent_unroll(), name))[shape]
    assert refusal(make_message(**{name: array})).field == f"unroll.{name}.shape"


@pytest.mark.parametrize(
    "shape", ["T too small", "T too large", "axes swapped", "an axis more", "an axis less", "a scalar", "no T", "no E"]
)
def test_actions_of_another_shape_are_refused(shape: str) -> None:
    error = refusal(make_message(actions=_other_shapes(make_recurrent_unroll().actions)[shape]))
    assert error.field == "unroll.actions.shape"
    assert "expected [5, E] with E from 1 to 8, came [" in str(error)


@pytest.mark.parametrize("shape", ["E too small", "E too large"])
def test_actions_of_another_number_of_environments_than_the_rest_are_refused(shape: str) -> None:
    error = refusal(make_message(actions=_other_shapes(make_recurrent_unroll().actions)[shape]))
    assert error.field == "unroll.observations[observation].shape"


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize(
    ("group", "name"), [("observations", "observation"), ("initial_state", "core.h"), ("initial_state", "frames")]
)
def test_an_entry_of_another_shape_is_refused(group: str, name: str, shape: str) -> None:
    message = make_message()
    array = _other_shapes(getattr(make_recurrent_unroll(), group)[name])[shape]
    entry(message, group, name).tensor.CopyFrom(encode_tensor(array))
    assert refusal(message).field == f"unroll.{group}[{name}].shape"


@pytest.mark.parametrize(
    ("space", "actions", "error"),
    [
        (discrete(2), np.zeros((5, 3, 1), dtype=np.int64), "shape: expected [5, E] with E from 1 to 8, came [5, 3, 1]"),
        (ActionSpec(sizes=(2,)), np.zeros((5, 3), dtype=np.int64), "shape: expected [5, E, 1] with E from 1 to 8, came [5, 3]"),
        (ActionSpec(sizes=(2, 2)), np.zeros((5, 3, 3), dtype=np.int64), "shape: expected [5, 3, 2], came [5, 3, 3]"),
        (ActionSpec(sizes=(2, 2)), np.zeros((5, 9, 2), dtype=np.int64), "shape: expected [5, E, 2] with E from 1 to 8, came "),
        (ActionSpec(dimensions=2), np.zeros((5, 3, 0), dtype=np.float32), "shape: expected [5, 3, 2], came [5, 3, 0]"),
        (ActionSpec(dimensions=2), np.zeros((5, 3, 2), dtype=np.int64), "dtype: expected DTYPE_FLOAT32, came DTYPE_INT64"),
        (ActionSpec(dimensions=1), np.full((5, 3, 1), np.nan, dtype=np.float32), "data: expected finite values, came 15 "),
        (ActionSpec(sizes=(3, 2)), np.full((5, 3, 2), 2), "data: expected 0 to 1 in element 1, came 2 to 2"),
        (ActionSpec(sizes=(3, 2)), np.full((5, 3, 2), -1), "data: expected 0 to 2 in element 0, came -1 to -1"),
    ],
    ids=str,
)
def test_actions_of_another_space_are_refused(space: ActionSpec, actions: np.ndarray, error: str) -> None:
    assert str(refusal(make_message(actions=actions), with_actions(space))).startswith(f"unroll.actions.{error}")


@pytest.mark.parametrize(
    ("cards", "error"), [((4, 0), "0 to 3 in element 0, came 0 to 4"), ((3, 13), "0 to 12 in element 1, came 0 to 13")]
)
def test_categories_that_an_entry_does_not_have_are_refused(cards: tuple[int, int], error: str) -> None:
    assert str(refusal(*with_cards(cards))) == f"unroll.observations[cards].data: expected {error}"


def test_the_whole_unroll_of_another_length_is_refused() -> None:
    message = encode_unroll(make_unroll(length=6))
    assert str(refusal(message, SPEC)) == "unroll.actions.shape: expected [5, E] with E from 1 to 8, came [6, 3]"


def test_more_environments_than_the_learner_takes_are_refused() -> None:
    message = encode_unroll(make_unroll(environments=9))
    assert str(refusal(message, SPEC)) == "unroll.actions.shape: expected [5, E] with E from 1 to 8, came [5, 9]"


def test_actions_of_absurdly_many_axes_are_counted_and_not_listed() -> None:
    actions = pb.Tensor(dtype=pb.DTYPE_INT64, shape=[1] * 100_000, encoding=pb.ENCODING_RAW)
    assert str(refusal(make_message(actions=actions))) == "unroll.actions.shape: expected at most 8 axes, came 100000"


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_with_a_byte_too_few_or_too_many_is_refused(name: str, change: int) -> None:
    message = make_message()
    tensor = getattr(message, name)
    tensor.data = tensor.data[:-1] if change < 0 else tensor.data + b"\0"
    assert refusal(message).field == f"unroll.{name}.data"


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_missing_is_refused(name: str) -> None:
    message = make_message()
    message.ClearField(name)
    assert refusal(message).field == ("unroll.actions" if name == "actions" else f"unroll.{name}.dtype")


@pytest.mark.parametrize("name", ["is_first", "terminated"])
def test_flags_other_than_0_and_1_are_refused(name: str) -> None:
    message = make_message()
    tensor = getattr(message, name)
    tensor.data = b"\2" + tensor.data[1:]
    assert refusal(message).field == f"unroll.{name}.data"


# --- Entries


@pytest.mark.parametrize("group", ["observations", "initial_state"])
def test_a_missing_entry_is_refused(group: str) -> None:
    message = make_message()
    del getattr(message, group)[0]
    assert refusal(message).field == f"unroll.{group}"


@pytest.mark.parametrize("group", ["observations", "initial_state"])
def test_an_entry_that_nobody_asked_for_is_refused(group: str) -> None:
    message = make_message()
    getattr(message, group).add(name="extra", tensor=encode_tensor(np.zeros(3, dtype=np.float32)))
    assert refusal(message).field == f"unroll.{group}"


@pytest.mark.parametrize("group", ["observations", "initial_state"])
def test_an_entry_of_another_name_is_refused(group: str) -> None:
    message = make_message()
    getattr(message, group)[0].name = "observations"
    assert refusal(message).field == f"unroll.{group}"


@pytest.mark.parametrize("group", ["observations", "initial_state"])
def test_an_entry_that_comes_twice_is_refused(group: str) -> None:
    message = make_message()
    getattr(message, group).append(getattr(message, group)[0])
    assert refusal(message).field == f"unroll.{group}"


def test_state_is_refused_where_the_network_has_none() -> None:
    assert refusal(make_message(), SPEC).field == "unroll.initial_state"


# --- Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["rewards", "behaviour_log_probs"])
def test_rewards_and_log_probabilities_that_are_not_finite_are_refused(name: str, value: float) -> None:
    array = getattr(make_recurrent_unroll(), name).copy()
    array[4, 2] = value
    error = refusal(make_message(**{name: array}))
    assert str(error) == f"unroll.{name}.data: expected finite values, came 1 NaN or infinite"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("group", "name"), [("observations", "observation"), ("initial_state", "core.h")])
def test_observations_and_state_that_are_not_finite_are_refused(group: str, name: str, value: float) -> None:
    message = make_message()
    array = getattr(make_recurrent_unroll(), group)[name].copy()
    array[-1, -1] = value
    entry(message, group, name).tensor.CopyFrom(encode_tensor(array))
    assert refusal(message).field == f"unroll.{group}[{name}].data"


def test_a_log_probability_above_0_is_refused() -> None:
    log_probs = np.full((5, 3), -0.5, dtype=np.float32)
    log_probs[2, 1] = 0.25
    error = refusal(make_message(behaviour_log_probs=log_probs))
    assert str(error) == "unroll.behaviour_log_probs.data: expected log-probabilities of at most 0, came 0.25"


@pytest.mark.parametrize("action", [2, 2**63 - 1])
def test_an_action_beyond_the_last_is_refused(action: int) -> None:
    actions = np.zeros((5, 3), dtype=np.int64)
    actions[4, 2] = action
    assert str(refusal(make_message(actions=actions))) == f"unroll.actions.data: expected 0 to 1, came 0 to {action}"


@pytest.mark.parametrize("action", [-1, -(2**63)])
def test_a_negative_action_is_refused(action: int) -> None:
    actions = np.zeros((5, 3), dtype=np.int64)
    actions[0, 0] = action
    assert str(refusal(make_message(actions=actions))) == f"unroll.actions.data: expected 0 to 1, came {action} to 0"


def test_version_0_is_refused() -> None:
    error = refusal(make_message(parameter_version=0))
    assert str(error) == "unroll.parameter_version: expected a version of at least 1, came 0"


@pytest.mark.parametrize("version", [2**63, 2**64 - 1])
def test_a_version_that_no_learner_reaches_is_refused(version: int) -> None:
    assert refusal(make_message(parameter_version=version)).field == "unroll.parameter_version"


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_were_flipped_on_the_way_are_refused_or_valid(seed: int) -> None:
    random = np.random.default_rng(seed)
    valid = np.frombuffer(make_message().SerializeToString(), dtype=np.uint8)
    for _ in range(60):
        spoiled = valid.copy()
        spoiled[random.integers(0, len(valid), size=3)] ^= np.uint8(1 << random.integers(8))
        try:
            unroll = decode_unroll(pb.Unroll.FromString(spoiled.tobytes()), RECURRENT)
        except (DecodeError, InvalidMessage):
            continue
        assert np.isfinite(unroll.rewards).all()
        assert set(unroll.actions.flat) <= {0, 1}


# --- Episodes


def test_episodes_come_back_equal_and_in_order() -> None:
    episodes = [
        Episode(episode_return=-3.25, length=7),
        Episode(episode_return=500.0, length=500),
        Episode(episode_return=0.0, length=1),
    ]
    assert decode_episodes(encode_episodes(episodes), at_most=3) == episodes


def test_no_episodes_are_no_error() -> None:
    assert decode_episodes(encode_episodes([]), at_most=0) == []


def test_more_episodes_than_steps_are_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^episodes: expected at most 2, one a step, came 3$"):
        decode_episodes([pb.Episode(episode_return=1.0, length=1)] * 3, at_most=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_not_finite_is_refused(value: float) -> None:
    messages = [pb.Episode(episode_return=1.0, length=1), pb.Episode(episode_return=value, length=1)]
    with pytest.raises(InvalidMessage, match=r"^episodes\[1\]\.episode_return: expected a finite number, came "):
        decode_episodes(messages, at_most=2)


def test_an_episode_without_steps_is_refused() -> None:
    messages = [pb.Episode(episode_return=1.0, length=1), pb.Episode(episode_return=1.0)]
    with pytest.raises(InvalidMessage, match=r"^episodes\[1\]\.length: expected at least 1, came 0$"):
        decode_episodes(messages, at_most=2)


# --- Times


def test_times_come_back_equal() -> None:
    times = ActorTimes(total=2.0, environment=0.5, inference=0.75, waiting=0.25, line=3.0, sending=4.0, fetching=5.0, starved=0.125)
    assert decode_times(encode_times(times)) == times


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
@pytest.mark.parametrize("field", ["total", "line", "sending", "fetching", "starved"])
def test_a_time_that_is_no_duration_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidMessage, match=rf"^times\.{field}: expected a duration of 0 or more, came "):
        decode_times(pb.ActorTimes(**{"total": 1.0, field: value}))


@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("part", ["environment", "inference", "waiting"])
def test_a_part_that_is_not_within_the_total_is_refused(part: str, value: float) -> None:
    with pytest.raises(InvalidMessage, match=rf"^times\.{part}: expected 0 to the total of 1\.0, came "):
        decode_times(pb.ActorTimes(total=1.0, **{part: value}))


class Counted:
    """Messages that are said to be many, and are not to be looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, _: Any) -> Any:
        return []

    def __iter__(self) -> Any:
        raise AssertionError("read one by one")


def test_episodes_are_counted_before_they_are_read() -> None:
    with pytest.raises(InvalidMessage, match=r"^episodes: expected at most 2, one a step, came 33554432$"):
        decode_episodes(Counted(2**25), at_most=2)  # type: ignore[arg-type]


def test_named_tensors_are_counted_before_they_are_read() -> None:
    with pytest.raises(InvalidMessage, match=r"^unroll.observations: expected the entries \['observation'\], came 33554432: \[\]$"):
        decode_named_tensors(Counted(2**25), "unroll.observations", SPEC.environment.observations, (6, 1))  # type: ignore[arg-type]
