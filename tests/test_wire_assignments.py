"""The codec of `Join`'s answer, and the digest that says whether two ends talk of the same thing."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from impala.config import AgentConfig, EnvironmentConfig, NetworkConfig
from impala.errors import InvalidMessage
from impala.specs import TASK, ActionSpec, EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.wire import PROTOCOL_VERSION, Assignment, decode_assignment, encode_assignment, max_submission_bytes, spec_digest
from protos import impala_pb2 as pb

ENVIRONMENT = EnvironmentConfig(
    environment_id="CartPole-v1",
    kwargs={"sutton_barto_reward": True, "render_mode": None, "levels": [1, 2]},
    wrappers=(("TimeAwareObservation", {"flatten": False}), ("ClipReward", {})),
    life_loss_terminates=False,
)
AGENT = AgentConfig(
    environments=(EnvironmentConfig(environment_id="Acrobot-v1"), ENVIRONMENT),
    network=NetworkConfig(hidden_sizes=(32, 16), lstm_size=64, last_action_reward=True),
    unroll_length=7,
)
SPEC = UnrollSpec(
    unroll_length=7,
    max_environments=8,
    environment=EnvironmentSpec(
        observations={
            "image": EntrySpec(shape=(84, 84, 1), dtype=np.dtype(np.uint8)),
            "speed": EntrySpec(shape=(), dtype=np.dtype(np.float32)),
            "cards": EntrySpec(shape=(2, 2), dtype=np.dtype(np.int32), categories=(4, 13, 4, 13)),
            TASK: EntrySpec(shape=(), dtype=np.dtype(np.int64), categories=(2,)),
        },
        actions=discrete(3),
    ),
    state={"core": EntrySpec(shape=(2, 64), dtype=np.dtype(np.float32))},
)
ASSIGNMENT = Assignment(
    run_id="run",
    spec_digest=spec_digest(AGENT, SPEC),
    environment=ENVIRONMENT,
    task=1,
    network=AGENT.network,
    unroll_spec=SPEC,
    environments=4,
    seed=2**64 - 1,
    max_in_flight=2,
    max_on_the_way=3,
    compresses=True,
)


def make_message(**fields: Any) -> pb.JoinResponse:
    """Returns a valid answer with fields replaced."""
    message = encode_assignment(ASSIGNMENT)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def refusal(message: pb.JoinResponse) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode_assignment(message)
    return caught.value


def with_observation(name: str, entry: EntrySpec) -> UnrollSpec:
    return replace(SPEC, environment=replace(SPEC.environment, observations={**SPEC.environment.observations, name: entry}))


def with_actions(actions: ActionSpec) -> UnrollSpec:
    return replace(SPEC, environment=replace(SPEC.environment, actions=actions))


def with_environment(**fields: Any) -> AgentConfig:
    return replace(AGENT, environments=(AGENT.environments[0], replace(ENVIRONMENT, **fields)))


# --- Round trip


@pytest.mark.parametrize(
    "actions",
    [
        discrete(3),
        discrete(1),
        ActionSpec(sizes=(3,)),
        ActionSpec(sizes=(3, 1, 5)),
        ActionSpec(dimensions=1),
        ActionSpec(dimensions=17),
    ],
    ids=str,
)
def test_an_assignment_comes_back_equal(actions: ActionSpec) -> None:
    assignment = replace(ASSIGNMENT, unroll_spec=with_actions(actions))
    assert decode_assignment(pb.JoinResponse.FromString(encode_assignment(assignment).SerializeToString())) == assignment


def test_an_assignment_of_a_feed_forward_network_has_no_state() -> None:
    assignment = replace(ASSIGNMENT, unroll_spec=replace(SPEC, state={}))
    assert decode_assignment(encode_assignment(assignment)).unroll_spec.state == {}


def test_an_answer_carries_protocol_version_and_message_limit() -> None:
    message = encode_assignment(ASSIGNMENT)
    assert message.protocol_version == PROTOCOL_VERSION
    assert message.max_message_bytes == max_submission_bytes(ASSIGNMENT.unroll_spec)


def test_no_keyword_arguments_and_no_wrappers_may_be_left_out_on_the_wire() -> None:
    environment = decode_assignment(make_message(environment_kwargs_json="", environment_wrappers_json="")).environment
    assert (environment.kwargs, environment.wrappers) == ({}, ())


def test_an_actor_of_a_run_without_an_entry_for_tasks_may_have_any() -> None:
    message = make_message(task=7)
    del message.observation_specs[list(SPEC.environment.observations).index(TASK)]
    assert decode_assignment(message).task == 7


# --- What the actor would have to make room for


def set_mlp(message: pb.JoinResponse, *widths: int) -> None:
    message.network_json = json.dumps({"network": "mlp", "hidden_sizes": widths})


TOO_LARGE: dict[str, tuple[str, Callable[[pb.JoinResponse], Any]]] = {
    "long unrolls": ("unroll_length", lambda message: setattr(message, "unroll_length", 2**32 - 1)),
    "large observations": ("unroll_length", lambda message: message.observation_specs[0].shape.__setitem__(2, 1000)),
    "large state": ("unroll_length", lambda message: message.state_specs[0].shape.__setitem__(1, 2**22)),
    "many actions": ("unroll_length", lambda message: message.actions.CopyFrom(pb.ActionSpec(dimensions=2**24))),
    "many frames": ("network_json", lambda message: setattr(message, "network_json", '{"frame_stack": 100000}')),
    "wide layers": ("network_json", lambda message: set_mlp(message, 5000, 5000)),
    "one wide layer": ("network_json", lambda message: set_mlp(message, 33554432)),
    "a first layer of many inputs": ("network_json", lambda message: set_mlp(message, 2400)),
    "a wide head": ("network_json", lambda message: (set_mlp(message, 64), message.actions.sizes.__setitem__(0, 2**19))),
    "many layers": ("network_json", lambda message: setattr(message, "network_json", f'{{"hidden_sizes": {[1] * 257}}}')),
    "a wide core": ("network_json", lambda message: setattr(message, "network_json", '{"lstm_size": 2049}')),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_could_never_be_sent_is_refused_before_room_is_made_for_it(name: str) -> None:
    message = make_message()
    field, enlarge = TOO_LARGE[name]
    enlarge(message)
    assert refusal(message).field == field


# --- The digest

DIFFERENT: dict[str, Callable[[], tuple[AgentConfig, UnrollSpec]]] = {
    "environment": lambda: (with_environment(environment_id="Pendulum-v1"), SPEC),
    "a keyword argument": lambda: (with_environment(kwargs={**ENVIRONMENT.kwargs, "render_mode": "rgb_array"}), SPEC),
    "no keyword arguments": lambda: (with_environment(kwargs={}), SPEC),
    "wrappers swapped": lambda: (with_environment(wrappers=ENVIRONMENT.wrappers[::-1]), SPEC),
    "life loss": lambda: (with_environment(life_loss_terminates=True), SPEC),
    "environments swapped": lambda: (replace(AGENT, environments=AGENT.environments[::-1]), SPEC),
    "an environment less": lambda: (replace(AGENT, environments=(ENVIRONMENT,)), SPEC),
    "network": lambda: (replace(AGENT, network=NetworkConfig(hidden_sizes=(16, 32))), SPEC),
    "unroll length": lambda: (replace(AGENT, unroll_length=8), SPEC),
    "an observation's shape": lambda: (AGENT, with_observation("speed", EntrySpec(shape=(1,), dtype=np.dtype(np.float32)))),
    "an observation's dtype": lambda: (AGENT, with_observation("speed", EntrySpec(shape=(), dtype=np.dtype(np.float64)))),
    "an observation more": lambda: (AGENT, with_observation("lives", EntrySpec(shape=(), dtype=np.dtype(np.int64)))),
    "a category more": lambda: (
        AGENT,
        with_observation("cards", replace(SPEC.environment.observations["cards"], categories=(4, 13, 4, 14))),
    ),
    "categories swapped": lambda: (
        AGENT,
        with_observation("cards", replace(SPEC.environment.observations["cards"], categories=(13, 4, 13, 4))),
    ),
    "an action more": lambda: (AGENT, with_actions(discrete(4))),
    "actions with an axis": lambda: (AGENT, with_actions(ActionSpec(sizes=(3,)))),
    "several choices": lambda: (AGENT, with_actions(ActionSpec(sizes=(3, 2)))),
    "real numbers": lambda: (AGENT, with_actions(ActionSpec(dimensions=3))),
    "no state": lambda: (AGENT, replace(SPEC, state={})),
    "state's shape": lambda: (AGENT, replace(SPEC, state={"core": EntrySpec(shape=(64, 2), dtype=np.dtype(np.float32))})),
    "state's dtype": lambda: (AGENT, replace(SPEC, state={"core": EntrySpec(shape=(2, 64), dtype=np.dtype(np.float64))})),
    "state's name": lambda: (AGENT, replace(SPEC, state={"lstm": SPEC.state["core"]})),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_the_digest_tells_apart_what_cannot_be_trained_together(difference: str) -> None:
    assert spec_digest(*DIFFERENT[difference]()) != spec_digest(AGENT, SPEC)


def test_no_two_of_the_different_digests_are_equal() -> None:
    assert len({spec_digest(*make()) for make in DIFFERENT.values()}) == len(DIFFERENT)


def test_the_digest_does_not_depend_on_the_order_of_entries_or_keyword_arguments() -> None:
    agent = with_environment(kwargs=dict(reversed(ENVIRONMENT.kwargs.items())))
    observations = dict(reversed(SPEC.environment.observations.items()))
    spec = replace(SPEC, environment=replace(SPEC.environment, observations=observations))
    assert spec_digest(agent, spec) == spec_digest(AGENT, SPEC)


def test_the_digest_does_not_depend_on_how_many_environments_an_actor_may_run() -> None:
    assert spec_digest(AGENT, replace(SPEC, max_environments=9)) == spec_digest(AGENT, SPEC)


def test_the_digest_of_what_the_actor_decoded_is_the_learners() -> None:
    assert spec_digest(AGENT, decode_assignment(encode_assignment(ASSIGNMENT)).unroll_spec) == ASSIGNMENT.spec_digest


# --- What is refused


@pytest.mark.parametrize("name", ["spec_digest", "environment_id", "environments", "unroll_length", "max_in_flight"])
def test_a_missing_field_is_refused(name: str) -> None:
    message = make_message()
    message.ClearField(name)
    assert str(refusal(message)) == f"{name}: expected a value, came none"


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "[" * 100_000], ids=lambda text: text[:3])
def test_a_network_that_is_no_json_object_is_refused(text: str) -> None:
    error = refusal(make_message(network_json=text))
    assert str(error).startswith("network_json: expected a JSON object, came '")


@pytest.mark.parametrize(
    "text",
    [
        '{"network": "no-such-network"}',
        '{"network": ["mlp"]}',
        '{"heads": 4}',
        '{"hidden_sizes": [0]}',
        '{"hidden_sizes": [1e999]}',
        '{"lstm_size": "wide"}',
    ],
)
def test_a_network_that_this_version_does_not_know_is_refused(text: str) -> None:
    error = refusal(make_message(network_json=text))
    assert str(error).startswith("network_json: expected a configuration that this version knows, came ")


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_keyword_arguments_that_are_no_json_object_are_refused(text: str) -> None:
    error = refusal(make_message(environment_kwargs_json=text))
    assert str(error).startswith("environment_kwargs_json: expected a JSON object, came '")


@pytest.mark.parametrize("text", ["[", "{}", "7", '"ClipReward"', "[" * 100_000], ids=lambda text: text[:3])
def test_wrappers_that_are_no_json_array_are_refused(text: str) -> None:
    error = refusal(make_message(environment_wrappers_json=text))
    assert str(error).startswith("environment_wrappers_json: expected a JSON array, came '")


@pytest.mark.parametrize("wrapper", ['"ClipReward"', '["ClipReward"]', '["ClipReward", []]', "[1, {}]", '["A", {}, 1]', "{}"])
def test_a_wrapper_that_is_not_a_name_and_its_arguments_is_refused(wrapper: str) -> None:
    error = refusal(make_message(environment_wrappers_json=f'[["TimeAwareObservation", {{}}], {wrapper}]'))
    assert str(error).startswith("environment_wrappers_json[1]: expected [name, object of keyword arguments], came ")


def test_a_task_beyond_the_last_is_refused() -> None:
    assert str(refusal(make_message(task=2))) == "task: expected 0 to 1, came 2"


def test_more_environments_than_the_learner_takes_are_refused() -> None:
    assert str(refusal(make_message(environments=9))) == "environments: expected at most max_environments (8), came 9"


@pytest.mark.parametrize(
    ("actions", "error"),
    [
        ({}, "actions: expected either sizes or dimensions, came sizes [] and dimensions 0"),
        ({"sizes": [2], "dimensions": 1}, "actions: expected either sizes or dimensions, came sizes [2] and dimensions 1"),
        ({"sizes": [2, 0]}, "actions.sizes: expected numbers of at least 1, 16777216 in all, came 0 to 2, 2 in all"),
        ({"sizes": [2**64 - 1]}, "actions.sizes: expected numbers of at least 1, 16777216 in all, came "),
        ({"sizes": [2**23, 2**23, 1]}, "actions.sizes: expected numbers of at least 1, 16777216 in all, came "),
        ({"dimensions": 2**24 + 1}, "actions.dimensions: expected at most 16777216, came 16777217"),
        ({"sizes": [2, 3], "single": True}, "actions.single: expected one size where true, came 2"),
        ({"dimensions": 1, "single": True}, "actions.single: expected one size where true, came 0"),
    ],
    ids=str,
)
def test_actions_that_make_no_sense_are_refused(actions: dict[str, Any], error: str) -> None:
    message = make_message()
    message.actions.CopyFrom(pb.ActionSpec(**actions))
    assert str(refusal(message)).startswith(error)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"shape": [1] * 9}, ".shape: expected at most 8 axes, came 9"),
        ({"shape": [2**62]}, f".shape: expected at most 16777216 elements, came [{2**62}]"),
        ({"shape": [2**12, 2**13]}, ".shape: expected at most 16777216 elements, came [4096, 8192]"),
        ({"shape": [0, 2**62]}, f".shape: expected at most 16777216 elements, came [0, {2**62}]"),
        ({"shape": [2], "categories": [3]}, ".categories: expected 2, one an element, came 1"),
        ({"shape": [], "categories": [3, 3]}, ".categories: expected 1, one an element, came 2"),
        ({"shape": [2], "categories": [3, 0]}, ".categories: expected numbers of at least 1, "),
        ({"shape": [2], "categories": [2**24, 1]}, ".categories: expected numbers of at least 1, "),
        ({"dtype": pb.DTYPE_FLOAT32, "categories": [3]}, ".categories: expected none for float32, came 1"),
        ({"dtype": pb.DTYPE_BOOL, "categories": [2]}, ".categories: expected none for bool, came 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("group", ["observation_specs", "state_specs"])
def test_an_entry_that_makes_no_sense_is_refused(group: str, fields: dict[str, Any], error: str) -> None:
    message = make_message()
    getattr(message, group).append(pb.TensorSpec(**{"name": "x", "dtype": pb.DTYPE_INT64, **fields}))
    assert str(refusal(message)).startswith(f"{group}[x]{error}")


@pytest.mark.parametrize("number", [pb.DTYPE_UNSPECIFIED, 99])
@pytest.mark.parametrize("group", ["observation_specs", "state_specs"])
def test_an_entry_of_unknown_dtype_is_refused(group: str, number: int) -> None:
    message = make_message()
    getattr(message, group)[0].dtype = number
    name = getattr(message, group)[0].name
    assert str(refusal(message)).startswith(f"{group}[{name}].dtype: expected a known DType, came ")


@pytest.mark.parametrize("group", ["observation_specs", "state_specs"])
def test_an_entry_that_is_described_twice_is_refused(group: str) -> None:
    message = make_message()
    getattr(message, group).append(getattr(message, group)[0])
    assert refusal(message).field == group


def test_the_digest_tells_runs_apart() -> None:
    assert spec_digest(AGENT, SPEC, run_id="one") != spec_digest(AGENT, SPEC, run_id="another")
