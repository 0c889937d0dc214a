"""What is fuzzed: each target takes bytes, and returns quietly for what it takes and for what it refuses in the documented way.

Anything else that it raises is a finding, as is an outcome that does not keep what is promised of it.
"""

import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from google.protobuf.message import DecodeError, Message

from actor_client.actor import check_parameters
from impala.errors import CheckpointError, InvalidMessage
from impala.specs import UnrollSpec
from impala.unroll import Unroll
from impala.unroll_trace import UnrollTrace
from impala.wire import MAX_MESSAGE_BYTES, decode_assignment, decode_parameters
from learner_server.actor_registry import ActorRegistry
from learner_server.balance import Balance, Door
from learner_server.parameter_store import ParameterStore
from learner_server.servicer import LearnerServicer
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb
from run_directory.checkpoint import load_checkpoint
from run_directory.journal import read_last_metrics, read_metrics
from tests.fuzz import seeds
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_message, mutate_safetensors


class Finding(AssertionError):
    """An outcome that breaks a promise."""


@dataclass(frozen=True)
class Target:
    """One thing that reads what others wrote.

    Attributes:
        seeds: valid inputs.
        check: returns whether the input was taken; raises for a finding.
        mutate: returns an input made from another.
        weight: how often it is drawn.
    """

    name: str
    seeds: tuple[bytes, ...]
    check: Callable[[bytes], bool]
    mutate: Callable[[bytes, random.Random], bytes]
    weight: int


class Aborted(Exception):
    """The call was ended with a status."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{status.name}: {details}")
        self.status, self.details = status, details


class _Context:
    """What a servicer sees of a call."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, status: grpc.StatusCode, details: str) -> None:
        raise Aborted(status, details)


# What a call may end with, of a message that is broken or not for this learner.
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE)


def answer(call: Coroutine[Any, Any, Any]) -> Any:
    """Returns a handler's answer, or None where it refused in the documented way. The handler must not wait for anything."""
    try:
        call.send(None)
    except StopIteration as returned:
        return returned.value
    except Aborted as refusal:
        if refusal.status not in REFUSALS:
            raise Finding(f"answered {refusal}") from refusal.__context__
        if len(refusal.details.encode()) > 4096:
            raise Finding(f"an answer of {len(refusal.details)} characters") from refusal
        return None
    call.close()
    raise Finding("the handler waits")


@dataclass
class _Service:
    """A servicer that nothing trains behind, of one case; made anew now and then, for its actors are never forgotten."""

    case: seeds.Case
    calls: int = 0
    servicer: LearnerServicer = field(init=False)

    def __post_init__(self) -> None:
        self._make()

    def _make(self) -> None:
        store, actors, balance = ParameterStore(), ActorRegistry(), Balance()
        store.publish(seeds.VERSION, {"weight": torch.zeros(2)})
        doors = [Door(host=f"h{rank}", port=1234, local_port=4321, machine=rank, actors=rank) for rank in range(2)]
        balance.update(doors)
        for actor in seeds.ACTORS:
            actors.join(actor, 1, "here", 2)
        self.servicer = LearnerServicer(
            assign=lambda _, __: self.case.assignment(),
            spec=self.case.spec,
            spec_digest=seeds.DIGEST,
            queue=UnrollQueue(capacity=1, max_line=1),
            store=store,
            actors=actors,
            max_policy_lag=1000,
            on_unroll=lambda *_: None,
            balance=balance,
        )

    def fresh(self) -> LearnerServicer:
        self.calls += 1
        if self.calls % 500 == 0:
            self._make()
        return self.servicer


def check_unroll(unroll: Unroll[np.ndarray], spec: UnrollSpec) -> None:
    """Raises Finding where an unroll is not what `spec` and `decode_unroll` promise, whatever the message was."""
    length, environments = spec.unroll_length, unroll.environments
    actions = spec.environment.actions
    above, rows = (length + 1, environments), (length, environments)
    wanted: list[tuple[str, np.ndarray, tuple[int, ...], Any]] = [
        ("is_first", unroll.is_first, above, np.bool_),
        ("actions", unroll.actions, (*rows, *actions.shape), actions.dtype),
        ("rewards", unroll.rewards, rows, np.float32),
        ("terminated", unroll.terminated, rows, np.bool_),
        ("behaviour_log_probs", unroll.behaviour_log_probs, rows, np.float32),
        ("parameter_version", unroll.parameter_version, (environments,), np.int64),
    ]
    for name, arrays, entries, leading in (
        ("observations", unroll.observations, spec.environment.observations, above),
        ("initial_state", unroll.initial_state, spec.state, (environments,)),
    ):
        if arrays.keys() != entries.keys():
            raise Finding(f"{name}: {sorted(arrays)}")
        for key, entry in entries.items():
            wanted.append((f"{name}[{key}]", arrays[key], leading + entry.shape, entry.dtype))
            _check_range(f"{name}[{key}]", arrays[key], entry.categories)
    if not 1 <= environments <= spec.max_environments:
        raise Finding(f"{environments} environments")
    for name, array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype:
            raise Finding(f"{name}: {array.dtype} {array.shape}, expected {dtype} {shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Finding(f"{name}: not finite")
        if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise Finding(f"{name}: a bool that is neither 0 nor 1")
    _check_range("actions", unroll.actions, actions.sizes)
    if actions.sizes and unroll.behaviour_log_probs.max() > 0:
        raise Finding("a probability above 1")
    if unroll.parameter_version.min() < 1:
        raise Finding("a version below 1")


def _check_range(name: str, array: np.ndarray, sizes: tuple[int, ...]) -> None:
    if sizes:
        elements = array.reshape(-1, len(sizes))
        if elements.min() < 0 or (elements >= np.array(sizes)).any():
            raise Finding(f"{name}: out of range")


def _check_trace(trace: UnrollTrace, unroll_length: int) -> None:
    moments = [trace.waited, trace.began, trace.collected, trace.encoded, trace.sent]
    if not all(map(math.isfinite, [*moments, trace.limits.least, trace.limits.most])) or moments != sorted(moments):
        raise Finding(f"trace: {trace}")
    if len(trace.step_micros) > 3 * unroll_length:
        raise Finding(f"trace: {len(trace.step_micros)} durations")


def _parsed(kind: type[Message], data: bytes) -> Any:
    """Returns the message, or None where gRPC's end of the wire refuses it."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _submission_target(index: int, case: seeds.Case) -> Target:
    service = _Service(case)

    def check(data: bytes) -> bool:
        request = _parsed(pb.SubmitTrajectoryRequest, data)
        if request is None:
            return False
        try:
            submission = service.servicer._decode(request)
        except InvalidMessage:
            return False
        check_unroll(submission.unroll, case.spec)
        if not all(math.isfinite(episode.episode_return) and episode.length >= 1 for episode in submission.episodes):
            raise Finding(f"episodes: {submission.episodes}")
        if not 0.0 <= submission.age_seconds < math.inf:
            raise Finding(f"age_seconds: {submission.age_seconds}")
        if submission.trace is not None:
            _check_trace(submission.trace, case.spec.unroll_length)
        return True

    made = tuple(case.submission(seed=seed, environments=seed % 4 + 1).SerializeToString() for seed in range(3))
    return Target(f"submit-{index}", made, check, _mutated(pb.SubmitTrajectoryRequest), weight=12)


def _mutated(kind: type[Message]) -> Callable[[bytes, random.Random], bytes]:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        message = None if rng.random() < 0.15 else _parsed(kind, data)
        if message is None:
            return mutate_bytes(data, rng)
        mutate_message(message, rng)
        return bytes(message.SerializeToString())

    return mutate


def _call_target(name: str, kind: type[Message], method: str, seed: Message) -> Target:
    service = _Service(seeds.CASES[0])

    def check(data: bytes) -> bool:
        request = _parsed(kind, data)
        if request is None:
            return False
        response = answer(getattr(service.fresh(), method)(request, _Context()))
        if response is not None:
            response.SerializeToString()
        return response is not None

    return Target(name, (seed.SerializeToString(),), check, _mutated(kind), weight=8)


def _assignment_target() -> Target:
    def check(data: bytes) -> bool:
        response = _parsed(pb.JoinResponse, data)
        if response is None:
            return False
        try:
            assignment = decode_assignment(response)
        except InvalidMessage:
            return False
        spec = assignment.unroll_spec
        rows = (spec.unroll_length + 1) * assignment.environments
        largest = max((entry.size * entry.dtype.itemsize for entry in spec.environment.observations.values()), default=0)
        if rows * max(largest, 1) > MAX_MESSAGE_BYTES:
            raise Finding(f"an unroll of {rows} rows of {largest} bytes")
        return True

    made = tuple(seeds.join_response(case).SerializeToString() for case in seeds.CASES)
    return Target("assignment", made, check, _mutated(pb.JoinResponse), weight=12)


def _parameters_target() -> Target:
    def check(data: bytes) -> bool:
        try:
            tensors = decode_parameters(data)
            check_parameters(tensors, seeds.weights())
        except InvalidMessage:
            return False
        if sum(tensor.nbytes for tensor in tensors.values()) > len(data):
            raise Finding("more bytes than came")
        return True

    return Target("parameters", (seeds.parameters_file(),), check, mutate_safetensors, weight=10)


def _folder() -> Path:
    """Returns a folder in memory, where there is such a thing, that goes with the process."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own within it
    folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    _FOLDERS.append(folder)
    return Path(folder.name)


def remove_folders() -> None:
    """Removes the folders that targets wrote to."""
    while _FOLDERS:
        _FOLDERS.pop().cleanup()


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
_MANIFEST = "manifest.json"


def _checkpoint_target() -> Target:
    """The files of a checkpoint, one after the other as JSON says; half of them with a manifest that fits the damage."""
    names = tuple(seeds.checkpoint_files())

    def packed(files: dict[str, bytes]) -> bytes:
        return json.dumps({name: len(data) for name, data in files.items()}).encode() + b"\n" + b"".join(files.values())

    def unpacked(data: bytes) -> dict[str, bytes]:
        header, _, rest = data.partition(b"\n")
        files, at = {}, 0
        try:
            for name, size in json.loads(header).items():
                if name in names:
                    files[name] = rest[at : at + int(size)]
                    at += int(size)
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            return {}
        return files

    def check(data: bytes) -> bool:
        folder = _folder_of_checkpoints() / "version-000000000007"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in unpacked(data).items():
            (folder / name).write_bytes(content)
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError:
            return False
        if not isinstance(checkpoint.state, dict) or type(checkpoint.version) is not int:
            raise Finding(f"version {checkpoint.version!r}, state {type(checkpoint.state)}")
        return True

    def mutate(data: bytes, rng: random.Random) -> bytes:
        files = dict(unpacked(data) or seeds.checkpoint_files())
        name = rng.choice(list(files))
        if name.endswith(".safetensors"):
            files[name] = mutate_safetensors(files[name], rng)
        elif rng.random() < 0.8:
            files[name] = mutate_json(files[name].decode("utf-8", "replace"), rng).encode("utf-8", "surrogatepass")
        else:
            files[name] = mutate_bytes(files[name], rng)
        if rng.random() < 0.05:
            del files[name]
        if rng.random() < 0.6 and name != _MANIFEST:
            manifest = {
                each: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for each, content in files.items()
                if each != _MANIFEST
            }
            files[_MANIFEST] = json.dumps(manifest).encode()
        return packed(files)

    folder: list[Path] = []

    def _folder_of_checkpoints() -> Path:
        if not folder:
            folder.append(_folder())
        return folder[0]

    return Target("checkpoint", (packed(dict(seeds.checkpoint_files())),), check, mutate, weight=4)


def _journal_target() -> Target:
    file: list[Path] = []

    def check(data: bytes) -> bool:
        if not file:
            file.append(_folder() / "metrics.jsonl")
        file[0].write_bytes(data)
        lines, last = read_metrics(file[0]), read_last_metrics(file[0])
        if any(not isinstance(line, dict) for line in lines) or not (last is None or isinstance(last, dict)):
            raise Finding(f"lines that are no objects: {lines}")
        if last != (lines[-1] if lines else None) and last == last:  # noqa: PLR0124 - a NaN within differs from itself
            raise Finding("the last line is another one")
        return bool(lines)

    def mutate(data: bytes, rng: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        if not lines or rng.random() < 0.4:
            return mutate_bytes(data, rng)
        index = rng.randrange(len(lines))
        text = lines[index].decode("utf-8", "replace")
        lines[index] = mutate_json(text, rng).encode("utf-8", "surrogatepass") + rng.choice((b"\n", b"\n", b"", b"\r"))
        return b"".join(lines)

    return Target("journal", (seeds.metrics_file(),), check, mutate, weight=4)


def make_targets() -> list[Target]:
    """Returns all targets."""
    return [
        *(_submission_target(index, case) for index, case in enumerate(seeds.CASES)),
        _call_target("join", pb.JoinRequest, "Join", seeds.join_request()),
        _call_target("get-parameters", pb.GetParametersRequest, "GetParameters", seeds.parameters_request()),
        _assignment_target(),
        _parameters_target(),
        _checkpoint_target(),
        _journal_target(),
    ]
