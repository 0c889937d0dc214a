"""How large a message of a run may be: what its widest unroll takes."""

import math
from collections.abc import Mapping

from impala.specs import EntrySpec, UnrollSpec
from impala.wire.tensors import MAX_MESSAGE_BYTES

# Of a tensor besides its elements and its name: tags, lengths, dtype, up to eight axes.
_TENSOR_BYTES = 128
# Of a finished episode: a double, and a count of up to ten bytes, with their tags.
_EPISODE_BYTES = 24
# Of a step in an UnrollTrace: three counts of up to five bytes.
_STEP_BYTES = 15
# Identity, digest, times, trace and version take less than a kilobyte. The rest is room for messages that are a little wrong, so
# that their senders are told which field it is.
_SLACK_BYTES = 64 * 1024


def max_submission_bytes(spec: UnrollSpec) -> int:
    """Returns what no valid SubmitTrajectoryRequest of a run exceeds, nor any other message to its learner.

    That is the widest unroll with its tensors raw, for compressed ones are sent only where they are smaller, and an episode's end
    and a trace at every step; MAX_MESSAGE_BYTES at most.
    """
    observations, actions = spec.environment.observations, spec.environment.actions
    # is_first; then reward, termination, log-probability and what may have ended.
    frame = _elements_bytes(observations) + 1
    row = math.prod(actions.shape) * actions.dtype.itemsize + 4 + 1 + 4 + _EPISODE_BYTES
    trajectory = (spec.unroll_length + 1) * frame + spec.unroll_length * row + _elements_bytes(spec.state)
    names = sum(len(name.encode()) + _TENSOR_BYTES for name in (*observations, *spec.state)) + 5 * _TENSOR_BYTES
    told = spec.unroll_length * _STEP_BYTES
    return min(MAX_MESSAGE_BYTES, spec.max_environments * trajectory + told + names + _SLACK_BYTES)


def _elements_bytes(entries: Mapping[str, EntrySpec]) -> int:
    return sum(entry.size * entry.dtype.itemsize for entry in entries.values())
