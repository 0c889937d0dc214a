"""Valid messages and files of several spaces and networks, small, for mutation to begin with."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from impala.config import EnvironmentConfig, NetworkConfig
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.unroll import ActorTimes, Episode, Unroll
from impala.unroll_trace import ClockLimits, UnrollTrace
from impala.wire import (
    Assignment,
    Compressor,
    encode_assignment,
    encode_episodes,
    encode_parameters,
    encode_times,
    encode_trace,
    encode_unroll,
)
from protos import impala_pb2 as pb
from run_directory.checkpoint import Checkpoint, save_checkpoint

DIGEST = "0123456789abcdef"
VERSION = 5
ACTORS = ("fuzz-0", "fuzz-1", "fuzz-2", "fuzz-3")


@dataclass(frozen=True)
class Case:
    """Spaces and a network, and whether the actor compresses."""

    spec: UnrollSpec
    network: NetworkConfig
    compresses: bool = False

    def assignment(self) -> Assignment:
        return Assignment(
            run_id="fuzz",
            spec_digest=DIGEST,
            environment=EnvironmentConfig(environment_id="CartPole-v1", kwargs={"a": 1}, wrappers=(("w", {"k": [1.5, "x"]}),)),
            task=0,
            network=self.network,
            unroll_spec=self.spec,
            environments=2,
            seed=7,
            max_in_flight=2,
            max_on_the_way=4,
            compresses=self.compresses,
        )

    def submission(self, *, seed: int = 0, environments: int = 2) -> pb.SubmitTrajectoryRequest:
        unroll = random_unroll(self.spec, environments, np.random.default_rng(seed))
        return pb.SubmitTrajectoryRequest(
            actor_id=ACTORS[0],
            incarnation=1,
            sequence=1,
            spec_digest=DIGEST,
            unroll=encode_unroll(unroll, Compressor() if self.compresses else None),
            episodes=encode_episodes([Episode(episode_return=9.0, length=9), Episode(episode_return=-1.5, length=4)]),
            age_seconds=0.1,
            times=encode_times(ActorTimes(total=1.0, environment=0.4, inference=0.3, waiting=0.1)),
            trace=encode_trace(
                UnrollTrace(
                    waited=1.0,
                    began=2.0,
                    collected=3.0,
                    encoded=4.0,
                    sent=5.0,
                    limits=ClockLimits(least=-1.0, most=1.0),
                    step_micros=[9] * (3 * self.spec.unroll_length if seed % 2 else 0),
                )
            ),
        )


def _entry(dtype: str, *shape: int, categories: tuple[int, ...] = ()) -> EntrySpec:
    return EntrySpec(shape=shape, dtype=np.dtype(dtype), categories=categories)


def _spec(actions: ActionSpec, state: Mapping[str, EntrySpec] | None = None, **observations: EntrySpec) -> UnrollSpec:
    environment = EnvironmentSpec(observations=observations, actions=actions)
    return UnrollSpec(unroll_length=3, max_environments=4, environment=environment, state=state or {})


CASES = (
    Case(_spec(discrete(2), observation=_entry("float32", 4)), NetworkConfig(network="mlp", hidden_sizes=(8,))),
    Case(_spec(ActionSpec(dimensions=2), observation=_entry("float64", 3)), NetworkConfig(network="mlp", squash_means=True)),
    Case(
        _spec(ActionSpec(sizes=(3, 2)), observation=_entry("int64", 2, categories=(3, 4)), bits=_entry("bool", 4)),
        NetworkConfig(network="mlp", last_action_reward=True),
    ),
    Case(
        _spec(
            discrete(3),
            {"lstm.h": _entry("float32", 8), "lstm.c": _entry("float32", 8)},
            camera=_entry("uint8", 6, 6, 1),
            speed=_entry("float32"),
            action_mask=_entry("bool", 3),
            task=_entry("int64", categories=(2,)),
        ),
        NetworkConfig(network="minatar", lstm_size=8),
    ),
    Case(
        _spec(discrete(4), {"frames.observation": _entry("uint8", 3, 12, 12)}, observation=_entry("uint8", 12, 12)),
        NetworkConfig(network="shallow", frame_stack=4),
        compresses=True,
    ),
    Case(_spec(discrete(2), observation=_entry("int32", 40, 40)), NetworkConfig(), compresses=True),
)


def random_unroll(spec: UnrollSpec, environments: int, random: np.random.Generator) -> Unroll[np.ndarray]:
    """Returns an unroll that `spec` allows."""
    rows, actions = (spec.unroll_length, environments), spec.environment.actions
    above = (spec.unroll_length + 1, environments)
    choices = _random(EntrySpec(shape=actions.shape, dtype=actions.dtype, categories=actions.sizes), rows, random)
    return Unroll(
        observations={name: _random(entry, above, random) for name, entry in spec.environment.observations.items()},
        is_first=random.random(above) < 0.2,
        actions=choices,
        rewards=random.normal(size=rows).astype(np.float32),
        terminated=random.random(rows) < 0.1,
        behaviour_log_probs=np.log(random.uniform(0.1, 1.0, size=rows)).astype(np.float32),
        initial_state={name: _random(entry, (environments,), random) for name, entry in spec.state.items()},
        parameter_version=np.full(environments, VERSION - 1, dtype=np.int64),
    )


def _random(entry: EntrySpec, leading: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    shape = (*leading, *entry.shape)
    if entry.categories:
        return random.integers(0, np.array(entry.categories).reshape(entry.shape), size=shape, dtype=entry.dtype)
    if entry.dtype.kind == "f":
        return random.normal(size=shape).astype(entry.dtype)
    # Mostly zeros, as frames are, so that compression has something to do.
    return (random.integers(0, 2, size=shape) * (random.random(shape) < 0.2)).astype(entry.dtype)


def join_request() -> pb.JoinRequest:
    return pb.JoinRequest(
        protocol_version=1,
        actor_id=ACTORS[0],
        incarnation=1,
        host="here",
        environments=2,
        called="127.0.0.1:1234",
        encodings=[pb.ENCODING_ZSTD],
    )


def parameters_request() -> pb.GetParametersRequest:
    return pb.GetParametersRequest(actor_id=ACTORS[0], known_version=1)


def join_response(case: Case) -> pb.JoinResponse:
    return encode_assignment(case.assignment())


@cache
def weights() -> dict[str, torch.Tensor]:
    """Returns weights of several dtypes, one of them without elements."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 8)
    return {
        **layer.state_dict(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.zeros((), dtype=torch.int64),
        "none": torch.zeros(0, 4),
    }


@cache
def parameters_file() -> bytes:
    return encode_parameters(weights())


@cache
def checkpoint_files() -> Mapping[str, bytes]:
    """Returns the files of a checkpoint by name."""
    floats = {name: tensor for name, tensor in weights().items() if tensor.dtype == torch.float32}
    checkpoint = Checkpoint(
        version=7,
        parameters=floats,
        optimiser={f"0.{name}": tensor for name, tensor in floats.items()},
        random={"cpu": torch.get_rng_state()[:64].clone()},
        state={"run_id": "fuzz", "env_steps": 60, "seconds": 1.5, "recent_returns": [[1.0, 2.0]], "actors": {"actors": {}}},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(Path(folder), checkpoint, keep=1)
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@cache
def metrics_file() -> bytes:
    line: dict[str, Any] = {"seconds": 1.0, "env_steps": 60, "mean_return_100": None, "dropped_by_rule": {"stale": 3}, "actors": 2}
    return b"".join(json.dumps({**line, "env_steps": 60 * row}).encode() + b"\n" for row in range(1, 4))
