"""The codec of `Join`'s answer: what to run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from impala.config import AgentConfig, EnvironmentConfig, NetworkConfig, network_from_json
from impala.errors import ConfigError, InvalidMessage
from impala.specs import ACTION_MASK, TASK, EntrySpec, EnvironmentSpec, UnrollSpec
from impala.wire.message_sizes import max_submission_bytes
from impala.wire.spaces import decode_actions, decode_entries, encode_actions, encode_entries
from impala.wire.tensors import MAX_MESSAGE_BYTES
from protos import impala_pb2 as pb

PROTOCOL_VERSION = 1

_MOST_LAYERS = 256


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What `Join` tells one actor to run, and within which limits.

    Attributes:
        run_id: the learner's run.
        spec_digest: names agent configuration and spaces; travels with every unroll.
        environment: the one of the run's environments that this actor steps.
        task: its place among them, from 0.
        network: the network.
        unroll_spec: T, observation entries, actions, recurrent state, limits.
        environments: E.
        seed: for this actor alone.
        max_in_flight: unrolls under way at once.
        max_on_the_way: more of them, for the time that they travel.
        compresses: whether the actor sends tensors as Zstandard frames where that makes them smaller.
    """

    run_id: str
    spec_digest: str
    environment: EnvironmentConfig
    task: int
    network: NetworkConfig
    unroll_spec: UnrollSpec
    environments: int
    seed: int
    max_in_flight: int
    max_on_the_way: int = 0
    compresses: bool = False


def spec_digest(agent: AgentConfig, spec: UnrollSpec, *, run_id: str = "") -> str:
    """Returns 16 hexadecimal digits that differ between runs, whose versions mean different weights, and between spaces."""
    content = {
        "agent": agent.to_json(),
        "observations": _describe(spec.environment.observations),
        "actions": asdict(spec.environment.actions),
        "state": _describe(spec.state),
        "run": run_id,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _describe(entries: Mapping[str, EntrySpec]) -> dict[str, Any]:
    return {name: [entry.shape, str(entry.dtype), entry.categories] for name, entry in entries.items()}


def encode_assignment(assignment: Assignment) -> pb.JoinResponse:
    """Returns an assignment as the answer to `Join`."""
    environment, spec = assignment.environment.to_json(), assignment.unroll_spec
    return pb.JoinResponse(
        protocol_version=PROTOCOL_VERSION,
        run_id=assignment.run_id,
        spec_digest=assignment.spec_digest,
        environment_id=environment["environment_id"],
        environment_kwargs_json=json.dumps(environment["kwargs"], sort_keys=True),
        environment_wrappers_json=json.dumps(environment["wrappers"], sort_keys=True),
        life_loss_terminates=environment["life_loss_terminates"],
        task=assignment.task,
        network_json=json.dumps(asdict(assignment.network), sort_keys=True),
        environments=assignment.environments,
        unroll_length=spec.unroll_length,
        observation_specs=encode_entries(spec.environment.observations),
        state_specs=encode_entries(spec.state),
        actions=encode_actions(spec.environment.actions),
        seed=assignment.seed,
        max_message_bytes=max_submission_bytes(spec),
        max_in_flight=assignment.max_in_flight,
        max_on_the_way=assignment.max_on_the_way,
        max_environments=spec.max_environments,
        encoding=pb.ENCODING_ZSTD if assignment.compresses else pb.ENCODING_RAW,
    )


def decode_assignment(message: pb.JoinResponse) -> Assignment:
    """Returns the answer to `Join` as an assignment.

    Raises:
        InvalidMessage: a field that is missing, contradicts another or cannot be read by this version.
    """
    for name in ("spec_digest", "environment_id", "environments", "unroll_length", "max_in_flight"):
        if not getattr(message, name):
            raise InvalidMessage(name, "a value", "none")
    if message.environments > message.max_environments:
        raise InvalidMessage("environments", f"at most max_environments ({message.max_environments})", f"{message.environments}")
    spec = UnrollSpec(
        unroll_length=message.unroll_length,
        max_environments=message.max_environments,
        environment=EnvironmentSpec(
            observations=decode_entries(message.observation_specs, "observation_specs"),
            actions=decode_actions(message.actions, "actions"),
        ),
        state=decode_entries(message.state_specs, "state_specs"),
    )
    network = _decode_network(message.network_json)
    _check_sizes(spec, network, message.environments)
    return Assignment(
        run_id=message.run_id,
        spec_digest=message.spec_digest,
        environment=_decode_environment(message),
        task=_decode_task(message.task, spec.environment),
        network=network,
        unroll_spec=spec,
        environments=message.environments,
        seed=message.seed,
        max_in_flight=message.max_in_flight,
        max_on_the_way=message.max_on_the_way,
        compresses=message.encoding == pb.ENCODING_ZSTD,
    )


def _decode_environment(message: pb.JoinResponse) -> EnvironmentConfig:
    return EnvironmentConfig(
        environment_id=message.environment_id,
        kwargs=_decode_object(message.environment_kwargs_json or "{}", "environment_kwargs_json"),
        wrappers=_decode_wrappers(message.environment_wrappers_json or "[]", "environment_wrappers_json"),
        life_loss_terminates=message.life_loss_terminates,
    )


def _decode_wrappers(text: str, field: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    wrappers = _decode_json(text, field, "a JSON array")
    if not isinstance(wrappers, list):
        raise InvalidMessage(field, "a JSON array", f"{text[:40]!r}")
    for index, wrapper in enumerate(wrappers):
        match wrapper:
            case [str(), dict()]:
                pass
            case _:
                raise InvalidMessage(f"{field}[{index}]", "[name, object of keyword arguments]", f"{str(wrapper)[:40]!r}")
    return tuple((name, kwargs) for name, kwargs in wrappers)


def _decode_task(task: int, environment: EnvironmentSpec) -> int:
    """Returns the task's number, which the actor writes into its observations where they have an entry for it."""
    entry = environment.observations.get(TASK)
    if entry is not None and entry.categories and task >= entry.categories[0]:
        raise InvalidMessage("task", f"0 to {entry.categories[0] - 1}", f"{task}")
    return task


def _decode_network(text: str) -> NetworkConfig:
    try:
        return network_from_json(_decode_object(text, "network_json"))
    except ConfigError as error:
        raise InvalidMessage("network_json", "a configuration that this version knows", str(error)) from error


def _check_sizes(spec: UnrollSpec, network: NetworkConfig, environments: int) -> None:
    """Refuses what could never be sent: the actor would make room for it, and come to its end for want of memory.

    Raises:
        InvalidMessage: a tensor of an unroll, or the weights of an MLP, an LSTM and the heads together, of more than
            MAX_MESSAGE_BYTES. Those of convolutions go by the image, and of torsos of one's own only their class knows.
    """
    steps, entries = spec.unroll_length + 1, spec.environment.observations.values()
    frame = max((entry.size * entry.dtype.itemsize for entry in entries), default=0)
    state = max((entry.size * entry.dtype.itemsize for entry in spec.state.values()), default=0)
    action = spec.environment.actions
    row = max(frame, 8 * (len(action.sizes) or action.dimensions), 8)
    if environments * max(steps * row, state) > MAX_MESSAGE_BYTES:
        came = f"{spec.unroll_length} steps of {environments} environments of {row} bytes"
        raise InvalidMessage("unroll_length", f"unrolls whose tensors have at most {MAX_MESSAGE_BYTES} bytes", came)
    if environments * frame * max(1, network.frame_stack) > MAX_MESSAGE_BYTES or len(network.hidden_sizes) > _MOST_LAYERS:
        raise InvalidMessage("network_json", "a frame_stack and hidden_sizes that memory can hold", _described(network))
    if 4 * _weights(spec.environment, network) > MAX_MESSAGE_BYTES:
        raise InvalidMessage("network_json", f"weights of at most {MAX_MESSAGE_BYTES} bytes", _described(network))


def _weights(spec: EnvironmentSpec, network: NetworkConfig) -> int:
    """Returns how many weights MLP, LSTM and heads have; of a torso of convolutions, whose features are some hundreds, none."""
    entries = [entry for name, entry in spec.observations.items() if name != ACTION_MASK]
    is_mlp = network.network == "mlp" or (network.network == "auto" and not any(entry.is_image for entry in entries))
    frames = max(1, network.frame_stack)
    shown = sum((sum(entry.categories) or entry.size) * (frames if entry.is_image else 1) for entry in entries)
    widths = [shown, *network.hidden_sizes] if is_mlp else [1]
    lstm = 4 * network.lstm_size * (network.lstm_size + widths[-1])
    heads = (network.lstm_size or widths[-1]) * (sum(spec.actions.sizes) + spec.actions.dimensions + 1)
    return sum(a * b for a, b in pairwise(widths)) + sum(widths[1:]) + lstm + heads


def _described(network: NetworkConfig) -> str:
    shown = [network.frame_stack, network.lstm_size, len(network.hidden_sizes), *network.hidden_sizes[:8]]
    return f"frame_stack, lstm_size, layers and their widths of {shown}"


def _decode_object(text: str, field: str) -> dict[str, Any]:
    value = _decode_json(text, field, "a JSON object")
    if not isinstance(value, dict):
        raise InvalidMessage(field, "a JSON object", f"{text[:40]!r}")
    return value


def _decode_json(text: str, field: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(field, expected, f"{text[:40]!r} ({error})") from error
