"""Sample data for tests: specs, unrolls and their messages, all valid unless a test makes them otherwise."""

from typing import Any

import numpy as np

from impala.config import AgentConfig, EnvironmentConfig
from impala.specs import EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.unroll import Unroll
from impala.wire import encode_unroll
from protos import impala_pb2 as pb

AGENT = AgentConfig(environments=(EnvironmentConfig(environment_id="CartPole-v1"),), unroll_length=5)

SPEC = UnrollSpec(
    unroll_length=5,
    max_environments=8,
    environment=EnvironmentSpec(
        observations={"observation": EntrySpec(shape=(4,), dtype=np.dtype(np.float32))},
        actions=discrete(2),
    ),
    state={},
)


def make_unroll(
    *,
    length: int = 5,
    environments: int = 3,
    version: int = 1,
    seed: int = 0,
    resets: tuple[tuple[int, int], ...] = (),
    **arrays: Any,
) -> Unroll[np.ndarray]:
    """Returns an unroll of random content that fits `SPEC`.

    Args:
        resets: (t, e) of observations that begin an episode: `is_first[t, e]`.
        arrays: fields to replace.
    """
    random = np.random.default_rng(seed)
    rows = (length, environments)
    is_first = np.zeros((length + 1, environments), dtype=np.bool_)
    for t, e in resets:
        is_first[t, e] = True
    fields: dict[str, Any] = {
        "observations": {"observation": random.normal(size=(length + 1, environments, 4)).astype(np.float32)},
        "is_first": is_first,
        "actions": random.integers(0, 2, size=rows),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminated": np.zeros(rows, dtype=np.bool_),
        "behaviour_log_probs": np.log(random.uniform(0.1, 1.0, size=rows)).astype(np.float32),
        "initial_state": {},
        "parameter_version": np.full(environments, version, dtype=np.int64),
    }
    return Unroll(**{**fields, **arrays})


def make_request(unroll: Unroll[np.ndarray], *, digest: str, sequence: int = 1, **fields: Any) -> pb.SubmitTrajectoryRequest:
    """Returns an unroll as actor `tester`, incarnation 1, sends it."""
    request = pb.SubmitTrajectoryRequest(
        actor_id="tester", incarnation=1, sequence=sequence, spec_digest=digest, unroll=encode_unroll(unroll), age_seconds=0.1
    )
    for name, value in fields.items():
        setattr(request, name, value)
    return request
