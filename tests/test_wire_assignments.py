"""The codec of `Join`'s answer, and the digest that says whether two ends talk of the same thing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from impala.config import AgentConfig, NetworkConfig
from impala.errors import InvalidMessage
from impala.specs import EntrySpec, EnvironmentSpec, UnrollSpec
from impala.wire import MAX_MESSAGE_BYTES, PROTOCOL_VERSION, Assignment, decode_assignment, encode_assignment, spec_digest
from protos import impala_pb2 as pb

AGENT = AgentConfig(
    environment_id="CartPole-v1",
    environment_kwargs={"sutton_barto_reward": True, "render_mode": None, "levels": [1, 2]},
    network=NetworkConfig(hidden_sizes=(32, 16)),
    unroll_length=7,
)
SPEC = UnrollSpec(
    unroll_length=7,
    max_environments=8,
    environment=EnvironmentSpec(
        observations={
            "image": EntrySpec(shape=(84, 84, 1), dtype=np.dtype(np.uint8)),
            "speed": EntrySpec(shape=(), dtype=np.dtype(np.float32)),
        },
        num_actions=3,
    ),
    state={"core": EntrySpec(shape=(2, 64), dtype=np.dtype(np.float32))},
)
ASSIGNMENT = Assignment(
    run_id="run",
    spec_digest=spec_digest(AGENT, SPEC),
    agent=AGENT,
    unroll_spec=SPEC,
    environments=4,
    seed=2**64 - 1,
    max_in_flight=2,
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


# --- Round trip


def test_an_assignment_comes_back_equal() -> None:
    assert decode_assignment(pb.JoinResponse.FromString(encode_assignment(ASSIGNMENT).SerializeToString())) == ASSIGNMENT


def test_an_assignment_of_a_feed_forward_network_has_no_state() -> None:
    assignment = replace(ASSIGNMENT, unroll_spec=replace(SPEC, state={}))
    assert decode_assignment(encode_assignment(assignment)).unroll_spec.state == {}


def test_an_answer_carries_protocol_version_and_message_limit() -> None:
    message = encode_assignment(ASSIGNMENT)
    assert (message.protocol_version, message.max_message_bytes) == (PROTOCOL_VERSION, MAX_MESSAGE_BYTES)


def test_no_keyword_arguments_may_be_left_out_on_the_wire() -> None:
    assert decode_assignment(make_message(environment_kwargs_json="")).agent.environment_kwargs == {}


# --- The digest

DIFFERENT: dict[str, Callable[[], tuple[AgentConfig, UnrollSpec]]] = {
    "environment": lambda: (replace(AGENT, environment_id="Acrobot-v1"), SPEC),
    "a keyword argument": lambda: (
        replace(AGENT, environment_kwargs={**AGENT.environment_kwargs, "render_mode": "rgb_array"}),
        SPEC,
    ),
    "no keyword arguments": lambda: (replace(AGENT, environment_kwargs={}), SPEC),
    "network": lambda: (replace(AGENT, network=NetworkConfig(hidden_sizes=(16, 32))), SPEC),
    "unroll length": lambda: (replace(AGENT, unroll_length=8), SPEC),
    "an observation's shape": lambda: (AGENT, with_observation("speed", EntrySpec(shape=(1,), dtype=np.dtype(np.float32)))),
    "an observation's dtype": lambda: (AGENT, with_observation("speed", EntrySpec(shape=(), dtype=np.dtype(np.float64)))),
    "an observation more": lambda: (AGENT, with_observation("lives", EntrySpec(shape=(), dtype=np.dtype(np.int64)))),
    "actions": lambda: (AGENT, replace(SPEC, environment=replace(SPEC.environment, num_actions=4))),
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
    agent = replace(AGENT, environment_kwargs=dict(reversed(AGENT.environment_kwargs.items())))
    observations = dict(reversed(SPEC.environment.observations.items()))
    spec = replace(SPEC, environment=replace(SPEC.environment, observations=observations))
    assert spec_digest(agent, spec) == spec_digest(AGENT, SPEC)


def test_the_digest_does_not_depend_on_how_many_environments_an_actor_may_run() -> None:
    assert spec_digest(AGENT, replace(SPEC, max_environments=9)) == spec_digest(AGENT, SPEC)


def test_the_digest_of_what_the_actor_decoded_is_the_learners() -> None:
    came = decode_assignment(encode_assignment(ASSIGNMENT))
    assert spec_digest(came.agent, came.unroll_spec) == ASSIGNMENT.spec_digest


# --- What is refused


@pytest.mark.parametrize("name", ["spec_digest", "environment_id", "environments", "unroll_length", "num_actions", "max_in_flight"])
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
        "{}",
        '{"network": "no-such-network", "hidden_sizes": [64]}',
        '{"network": "mlp", "hidden_sizes": [64], "heads": 4}',
        '{"network": "mlp", "hidden_sizes": 64}',
        '{"network": "mlp", "hidden_sizes": ["wide"]}',
        '{"network": "mlp", "hidden_sizes": [0]}',
        '{"network": "mlp", "hidden_sizes": [1e999]}',
        '{"network": ["mlp"], "hidden_sizes": [64]}',
    ],
)
def test_a_network_that_this_version_does_not_know_is_refused(text: str) -> None:
    error = refusal(make_message(network_json=text))
    assert str(error).startswith("network_json: expected a configuration that this version knows, came ")


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_keyword_arguments_that_are_no_json_object_are_refused(text: str) -> None:
    error = refusal(make_message(environment_kwargs_json=text))
    assert str(error).startswith("environment_kwargs_json: expected a JSON object, came '")


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
