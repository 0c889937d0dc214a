"""How large a message of a run may be: enough for every valid one, and not much more."""

from dataclasses import replace

import numpy as np
import pytest

from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.unroll import Unroll, idle_unroll
from impala.wire import MAX_MESSAGE_BYTES, encode_unroll, max_submission_bytes
from protos import impala_pb2 as pb
from tests.samples import SPEC

LONG_NAME = "entry." * 40


def spec_of(actions: ActionSpec, *, length: int = 20, environments: int = 100, names: int = 1) -> UnrollSpec:
    """Returns the spec of unrolls that have everything that a message can carry."""
    entries = {f"{LONG_NAME}{index}": EntrySpec(shape=(3, 5), dtype=np.dtype(np.uint8)) for index in range(names)}
    environment = EnvironmentSpec(observations=entries, actions=actions)
    state = {"lstm.h": EntrySpec(shape=(7,), dtype=np.dtype(np.float32))}
    return UnrollSpec(unroll_length=length, max_environments=environments, environment=environment, state=state)


def widest(spec: UnrollSpec) -> pb.SubmitTrajectoryRequest:
    """Returns the largest valid submission: every number as long as it gets, and an episode's end at every step."""
    one: Unroll[np.ndarray] = idle_unroll(spec).columns(0, 1)
    unroll = one.by_column(lambda array, axis: np.repeat(array, spec.max_environments, axis))
    request = pb.SubmitTrajectoryRequest(
        actor_id="\N{GRINNING FACE}" * 128,
        incarnation=2**64 - 1,
        sequence=2**63 - 1,
        spec_digest="0" * 16,
        unroll=encode_unroll(replace(unroll, parameter_version=np.full(spec.max_environments, 2**63 - 1))),
        age_seconds=1.5,
        times=pb.ActorTimes(**{field.name: 1.5 for field in pb.ActorTimes.DESCRIPTOR.fields}),
        trace=pb.UnrollTrace(waited=1.5, began=1.5, collected=1.5, encoded=1.5, sent=1.5, clock_least=1.5, clock_most=1.5),
    )
    request.trace.step_micros.extend([2**32 - 1] * 3 * spec.unroll_length)
    for _ in range(spec.unroll_length * spec.max_environments):
        request.episodes.add(episode_return=1.5, length=2**64 - 1)
    return request


@pytest.mark.parametrize("actions", [discrete(3), ActionSpec(sizes=(3, 4, 5)), ActionSpec(dimensions=9)], ids=str)
@pytest.mark.parametrize("names", [1, 200])
@pytest.mark.parametrize(("length", "environments"), [(1, 1), (20, 100), (100, 2)])
def test_the_widest_unroll_fits_and_leaves_little_room(actions: ActionSpec, names: int, length: int, environments: int) -> None:
    spec = spec_of(actions, names=names, length=length, environments=environments)
    size = widest(spec).ByteSize()
    assert size + 62 * 1024 <= max_submission_bytes(spec) <= 1.1 * size + 64 * 1024 + 128 * (names + 6)


def test_no_run_takes_messages_over_what_the_wire_takes() -> None:
    assert max_submission_bytes(replace(SPEC, max_environments=10**9)) == MAX_MESSAGE_BYTES
