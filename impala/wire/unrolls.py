"""The unroll codec: what an actor sends, and the checks that make it safe to train on."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

import numpy as np

from impala.errors import InvalidMessage
from impala.specs import UnrollSpec
from impala.unroll import ActorTimes, Episode, Unroll
from impala.wire.compression import Compressor
from impala.wire.tensors import (
    check_choices,
    decode_named_tensors,
    decode_shape,
    decode_tensor_as,
    encode_named_tensors,
    encode_tensor,
)
from protos import impala_pb2 as pb


def encode_unroll(unroll: Unroll[np.ndarray], compressor: Compressor | None = None) -> pb.Unroll:
    """Returns an actor's unroll as a message. Its columns all carry one parameter version. Copies.

    Args:
        compressor: the actor's; None sends every tensor raw.
    """
    versions = np.unique(unroll.parameter_version)
    assert versions.size == 1, f"one version acts in all steps of an actor's unroll, came {versions}"
    fields = ("is_first", "actions", "rewards", "terminated", "behaviour_log_probs")
    return pb.Unroll(
        parameter_version=int(versions[0]),
        observations=encode_named_tensors(unroll.observations, "observations", compressor),
        initial_state=encode_named_tensors(unroll.initial_state, "initial_state", compressor),
        **{name: encode_tensor(getattr(unroll, name), name, compressor) for name in fields},
    )


def decode_unroll(message: pb.Unroll, spec: UnrollSpec) -> Unroll[np.ndarray]:
    """Returns a message as an unroll that is safe to train on; its arrays are read-only, those that came raw views of the message.

    Raises:
        InvalidMessage: anything that `spec` does not allow, NaN or infinite values, choices and categories out of range,
            log-probabilities of choices above 0, versions below 1.
    """
    if not 1 <= message.parameter_version < 2**63:
        raise InvalidMessage("unroll.parameter_version", "a version of at least 1", f"{message.parameter_version}")
    length = spec.unroll_length
    environments = _environments(message, spec)
    rows = (length, environments)
    observations = decode_named_tensors(
        message.observations, "unroll.observations", spec.environment.observations, (length + 1, environments)
    )
    space = spec.environment.actions
    actions = decode_tensor_as(message.actions, "unroll.actions", space.dtype, rows + space.shape)
    log_probs = decode_tensor_as(message.behaviour_log_probs, "unroll.behaviour_log_probs", np.dtype(np.float32), rows)
    if not space.is_continuous:
        check_choices(actions, "unroll.actions", space.sizes)
        if log_probs.max() > 0.0:
            raise InvalidMessage("unroll.behaviour_log_probs.data", "log-probabilities of at most 0", f"{log_probs.max()}")
    return Unroll(
        observations=observations,
        is_first=decode_tensor_as(message.is_first, "unroll.is_first", np.dtype(np.bool_), (length + 1, environments)),
        actions=actions,
        rewards=decode_tensor_as(message.rewards, "unroll.rewards", np.dtype(np.float32), rows),
        terminated=decode_tensor_as(message.terminated, "unroll.terminated", np.dtype(np.bool_), rows),
        behaviour_log_probs=log_probs,
        initial_state=decode_named_tensors(message.initial_state, "unroll.initial_state", spec.state, (environments,)),
        parameter_version=np.full(environments, message.parameter_version, dtype=np.int64),
    )


def _environments(message: pb.Unroll, spec: UnrollSpec) -> int:
    """Returns E, which the actor chooses within the learner's limit; the action's shape says which."""
    if not message.HasField("actions"):
        raise InvalidMessage("unroll.actions", "a tensor", "none")
    shape, action = decode_shape(message.actions, "unroll.actions"), spec.environment.actions.shape
    if len(shape) != 2 + len(action) or shape[0] != spec.unroll_length or not 1 <= shape[1] <= spec.max_environments:
        axes = ", ".join(["E", *map(str, action)])
        expected = f"[{spec.unroll_length}, {axes}] with E from 1 to {spec.max_environments}"
        raise InvalidMessage("unroll.actions.shape", expected, str(list(shape)))
    return shape[1]


def encode_episodes(episodes: Iterable[Episode]) -> list[pb.Episode]:
    """Returns finished episodes as messages."""
    return [pb.Episode(episode_return=episode.episode_return, length=episode.length) for episode in episodes]


def decode_episodes(messages: Sequence[pb.Episode], *, at_most: int) -> list[Episode]:
    """Returns finished episodes.

    Raises:
        InvalidMessage: more than `at_most`, a return that is not finite, or a length of 0.
    """
    # Before they are copied: a message of two bytes for each makes an object of two hundred.
    if len(messages) > at_most:
        raise InvalidMessage("episodes", f"at most {at_most}, one a step", f"{len(messages)}")
    episodes = [Episode(episode_return=message.episode_return, length=message.length) for message in messages]
    for index, episode in enumerate(episodes):
        if not math.isfinite(episode.episode_return):
            raise InvalidMessage(f"episodes[{index}].episode_return", "a finite number", f"{episode.episode_return}")
        if episode.length < 1:
            raise InvalidMessage(f"episodes[{index}].length", "at least 1", f"{episode.length}")
    return episodes


def encode_times(times: ActorTimes) -> pb.ActorTimes:
    """Returns how an actor spent its time as a message."""
    return pb.ActorTimes(**asdict(times))


def decode_times(message: pb.ActorTimes) -> ActorTimes:
    """Returns how an actor spent its time.

    Raises:
        InvalidMessage: a duration that is negative or not finite, or parts that are longer than the whole.
    """
    times = ActorTimes(**{field.name: getattr(message, field.name) for field in fields(ActorTimes)})
    # Calls overlap: what they took in all may be longer than the time that they were answered in.
    for name in ("total", "line", "sending", "fetching", "starved"):
        if not 0.0 <= getattr(times, name) < math.inf:
            raise InvalidMessage(f"times.{name}", "a duration of 0 or more", f"{getattr(times, name)}")
    for name in ("environment", "inference", "waiting"):
        if not 0.0 <= getattr(times, name) <= times.total:
            raise InvalidMessage(f"times.{name}", f"0 to the total of {times.total}", f"{getattr(times, name)}")
    return times
