"""The codec of `Join`'s answer: what to run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from impala.config import AgentConfig
from impala.errors import ConfigError, InvalidMessage
from impala.specs import EntrySpec, EnvironmentSpec, UnrollSpec
from impala.wire.tensors import DTYPE_OF_NUMPY, NUMPY_OF_DTYPE, enum_name
from protos import impala_pb2 as pb

PROTOCOL_VERSION = 1

# Both directions, both ends. An unroll of CartPole is 30 kB, the paper's deep network 7 MB.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What `Join` tells an actor to run, and within which limits.

    Attributes:
        run_id: the learner's run.
        spec_digest: names agent configuration and spaces; travels with every unroll.
        agent: environment, network and unroll length.
        unroll_spec: observation entries, number of actions, recurrent state, limits.
        environments: E.
        seed: for this actor alone.
        max_in_flight: submissions that may be open at once.
    """

    run_id: str
    spec_digest: str
    agent: AgentConfig
    unroll_spec: UnrollSpec
    environments: int
    seed: int
    max_in_flight: int


def spec_digest(agent: AgentConfig, spec: UnrollSpec, *, run_id: str = "") -> str:
    """Returns 16 hexadecimal digits that differ between runs, whose versions mean different weights, and between spaces."""
    entries = {name: [list(entry.shape), str(entry.dtype)] for name, entry in spec.environment.observations.items()}
    state = {name: [list(entry.shape), str(entry.dtype)] for name, entry in spec.state.items()}
    content = {
        "agent": agent.to_json(),
        "observations": entries,
        "num_actions": spec.environment.num_actions,
        "state": state,
        "run": run_id,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def encode_assignment(assignment: Assignment) -> pb.JoinResponse:
    """Returns an assignment as the answer to `Join`."""
    agent, spec = assignment.agent.to_json(), assignment.unroll_spec
    return pb.JoinResponse(
        protocol_version=PROTOCOL_VERSION,
        run_id=assignment.run_id,
        spec_digest=assignment.spec_digest,
        environment_id=agent["environment_id"],
        environment_kwargs_json=json.dumps(agent["environment_kwargs"], sort_keys=True),
        network_json=json.dumps(agent["network"], sort_keys=True),
        environments=assignment.environments,
        unroll_length=spec.unroll_length,
        observation_specs=_encode_entries(spec.environment.observations),
        state_specs=_encode_entries(spec.state),
        num_actions=spec.environment.num_actions,
        seed=assignment.seed,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_in_flight=assignment.max_in_flight,
        max_environments=spec.max_environments,
    )


def decode_assignment(message: pb.JoinResponse) -> Assignment:
    """Returns the answer to `Join` as an assignment.

    Raises:
        InvalidMessage: a field that is missing or cannot be read by this version.
    """
    for name in ("spec_digest", "environment_id", "environments", "unroll_length", "num_actions", "max_in_flight"):
        if not getattr(message, name):
            raise InvalidMessage(name, "a value", "none")
    kwargs = _decode_json(message.environment_kwargs_json or "{}", "environment_kwargs_json")
    network = _decode_json(message.network_json, "network_json")
    try:
        agent = AgentConfig.from_json(
            {
                "environment_id": message.environment_id,
                "environment_kwargs": kwargs,
                "network": network,
                "unroll_length": message.unroll_length,
            }
        )
    except (ConfigError, OverflowError) as error:
        raise InvalidMessage("network_json", "a configuration that this version knows", str(error)) from error
    spec = UnrollSpec(
        unroll_length=message.unroll_length,
        max_environments=message.max_environments,
        environment=EnvironmentSpec(
            observations=_decode_entries(message.observation_specs, "observation_specs"), num_actions=message.num_actions
        ),
        state=_decode_entries(message.state_specs, "state_specs"),
    )
    return Assignment(
        run_id=message.run_id,
        spec_digest=message.spec_digest,
        agent=agent,
        unroll_spec=spec,
        environments=message.environments,
        seed=message.seed,
        max_in_flight=message.max_in_flight,
    )


def _decode_json(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(field, "a JSON object", f"{text[:40]!r} ({error})") from error
    if not isinstance(value, dict):
        raise InvalidMessage(field, "a JSON object", f"{text[:40]!r}")
    return value


def _encode_entries(entries: Mapping[str, EntrySpec]) -> list[pb.TensorSpec]:
    return [pb.TensorSpec(name=name, dtype=DTYPE_OF_NUMPY[entry.dtype], shape=entry.shape) for name, entry in entries.items()]


def _decode_entries(messages: Iterable[pb.TensorSpec], field: str) -> dict[str, EntrySpec]:
    entries: dict[str, EntrySpec] = {}
    for message in messages:
        if message.name in entries:
            raise InvalidMessage(field, "entries of different names", f"{message.name!r} twice")
        dtype = NUMPY_OF_DTYPE.get(message.dtype)
        if dtype is None:
            raise InvalidMessage(f"{field}[{message.name}].dtype", "a known DType", enum_name(pb.DType, message.dtype))
        entries[message.name] = EntrySpec(shape=tuple(message.shape), dtype=dtype)
    return entries
