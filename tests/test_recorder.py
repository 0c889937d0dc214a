"""The recorder follows unrolls through a queue and a learner step, and forgets those that are dropped on the way."""

import asyncio
import gc
import itertools
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from impala.config import LossConfig, OptimiserConfig
from impala.networks import build_network
from impala.unroll import Unroll
from impala.wire import encode_trace
from learner_server.journeys import Journey
from learner_server.learner import Learner
from learner_server.profile import Profile
from learner_server.recorder import Recorder
from learner_server.transfer import HostTransfer, Transfer
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb
from tests.device import LateDevice
from tests.journeys import make_trace
from tests.samples import AGENT, SPEC, make_request, make_unroll
from tests.service import Service, running_service

PATIENCE = 30.0


class Kept:
    """Stands where spans go."""

    def __init__(self) -> None:
        self.journeys: list[Journey] = []
        self.closed = False
        self.export = self.journeys.append

    def close(self) -> None:
        self.closed = True


class Case:
    """A recorder, by a clock that shows another second each time, and a queue that tells it."""

    def __init__(self, **queue: Any) -> None:
        self.clock = itertools.count(1000.0)
        self.kept = Kept()
        self.recorder = Recorder(spans=self.kept, clock=lambda: next(self.clock))  # type: ignore[arg-type]
        self.queue = UnrollQueue(**{"capacity": 100, "max_line": 0, "on_taken": self.recorder.taken, **queue})

    def put(self, unroll: Unroll[np.ndarray], sequence: int = 1) -> None:
        recorder = self.recorder
        recorder.follow(unroll, actor_id="a", incarnation=1, sequence=sequence, trace=make_trace(), received=recorder.now())
        asyncio.run(self.queue.put(unroll, 0, lambda: recorder.placed(unroll)))

    def fetch(self, trajectories: int) -> None:
        assert self.queue.take_batch(trajectories, 0.0) is not None
        self.recorder.batched()
        self.recorder.uploaded()

    def step(self, version: int | None = 2) -> None:
        self.recorder.begin_step(idle=False)
        self.recorder.stage("forward")
        self.recorder.end_step()
        self.recorder.published(version)

    def train(self, trajectories: int) -> None:
        self.fetch(trajectories)
        self.step()


def test_an_unroll_is_followed_from_decoding_to_publishing() -> None:
    case = Case()
    case.put(make_unroll(version=4))
    case.train(3)
    (journey,) = case.kept.journeys
    assert (journey.version, journey.trajectories, journey.sequence) == (4, 3, 1)
    assert journey.batch is not None
    assert (journey.batch.version, journey.batch.unrolls) == (2, 1)
    names = ["decoding", "in line for a place", "in the queue", "batching", "to the device", "waiting for the step", "forward",
             "finishing the step", "publishing"]  # fmt: skip
    stages = journey.stages(0.0)[-len(names) :]
    assert [stage.name for stage in stages] == names
    # The clock was asked once for each.
    assert [stage.end - stage.begin for stage in stages] == [1.0] * len(names)


def test_an_unroll_that_is_split_is_followed_with_its_first_columns() -> None:
    case = Case()
    case.put(make_unroll(environments=3))
    for _ in range(3):
        case.train(1)
    (journey,) = case.kept.journeys
    assert journey.trajectories == 3
    assert journey.batch is not None
    assert journey.batch.taken == journey.taken


def test_a_batch_knows_the_unrolls_that_are_followed_of_all_that_it_has() -> None:
    case = Case()
    case.put(make_unroll(), 1)
    asyncio.run(case.queue.put(make_unroll()))
    case.put(make_unroll(), 2)
    case.train(9)
    assert [journey.sequence for journey in case.kept.journeys] == [1, 2]
    assert {journey.batch.unrolls for journey in case.kept.journeys if journey.batch} == {3}


def test_a_batch_that_is_fetched_while_another_is_trained_on_keeps_its_own_moments() -> None:
    case = Case()
    case.put(make_unroll(), 1)
    case.put(make_unroll(), 2)
    case.fetch(3)
    case.recorder.begin_step(idle=False)
    case.fetch(3)
    case.recorder.end_step()
    case.recorder.published(8)
    case.step(9)
    first, second = (journey.batch for journey in case.kept.journeys)
    assert first is not None
    assert second is not None
    assert (first.version, second.version) == (8, 9)
    assert [name for name, _ in first.marks] == [
        "batching", "to the device", "waiting for the step", "finishing the step", "publishing",
    ]  # fmt: skip
    assert first.trained is not None
    assert first.trained > second.taken


def test_a_step_on_nothing_leaves_the_batch_that_is_there_for_the_next() -> None:
    case = Case()
    case.put(make_unroll())
    case.fetch(3)
    case.recorder.begin_step(idle=True)
    case.recorder.end_step()
    case.recorder.published(7)
    assert not case.kept.journeys
    case.step(8)
    assert [journey.batch.version for journey in case.kept.journeys if journey.batch] == [8]


def test_what_came_of_a_step_that_was_skipped_is_no_version() -> None:
    case = Case()
    case.put(make_unroll())
    case.fetch(3)
    case.step(None)
    assert [journey.batch.version for journey in case.kept.journeys if journey.batch] == [None]


def test_an_unroll_that_is_dropped_is_forgotten() -> None:
    case = Case(capacity=3, when_full="drop-oldest")
    for sequence in range(1, 9):
        case.put(make_unroll(), sequence)
    gc.collect()
    assert len(case.recorder._journeys) == 1
    case.train(3)
    assert [journey.sequence for journey in case.kept.journeys] == [8]
    assert not case.recorder._journeys


def test_spans_are_wanted_all_the_time_and_single_steps_for_a_profile_alone(tmp_path: Path) -> None:
    clock = itertools.count(0.0)
    profile = Profile(tmp_path / "trace.json", 5.0, lambda: next(clock))
    recorder = Recorder(profile=profile)
    assert not recorder.on
    for _ in range(10):
        recorder.end_step()
    recorder.tick()
    assert recorder.on
    assert recorder.wants_steps
    recorder.close()
    assert not recorder.on
    kept = Kept()
    recorder = Recorder(spans=kept)  # type: ignore[arg-type]
    assert recorder.on
    assert not recorder.wants_steps
    recorder.close()
    assert kept.closed


# --- What tells it


def test_answers_say_that_the_learner_records_while_it_does_and_unrolls_are_followed_then() -> None:
    kept = Kept()
    recorder = Recorder(spans=kept)  # type: ignore[arg-type]
    with running_service(recorder=recorder) as service:
        known = pb.GetParametersRequest(actor_id="tester", known_version=1)
        for answer in (
            service.stub.GetParameters(known, timeout=PATIENCE),
            service.stub.GetParameters(pb.GetParametersRequest(actor_id="tester"), timeout=PATIENCE),
            service.stub.SubmitTrajectory(traced(service, 1), timeout=PATIENCE),
        ):
            assert answer.recording.received <= answer.recording.answered <= recorder.now()
            assert not answer.recording.steps
        assert service.queue.take_batch(3, 0.0) is not None
        recorder.batched()
        recorder.uploaded()
        recorder.begin_step(idle=False)
        recorder.published(2)
    (journey,) = kept.journeys
    assert (journey.actor_id, journey.incarnation, journey.sequence) == ("tester", 1, 1)
    assert journey.placed is not None
    assert journey.received <= journey.decoded <= journey.placed


@pytest.mark.parametrize("recorder", [None, Recorder()])
def test_answers_say_nothing_and_no_unroll_is_followed_while_nothing_is_recorded(recorder: Recorder | None) -> None:
    with running_service(recorder=recorder) as service:
        known = pb.GetParametersRequest(actor_id="tester", known_version=1)
        assert not service.stub.GetParameters(known, timeout=PATIENCE).HasField("recording")
        answer = service.stub.SubmitTrajectory(traced(service, 1), timeout=PATIENCE)
        assert answer.accepted
        assert not answer.HasField("recording")
        assert recorder is None or not recorder._journeys


def test_an_unroll_whose_trace_is_malformed_is_refused_by_its_field() -> None:
    with running_service() as service:
        request = traced(service, 1)
        request.trace.sent = 0.0
        with pytest.raises(grpc.RpcError) as refused:
            service.stub.SubmitTrajectory(request, timeout=PATIENCE)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("trace.sent: expected no less than encoded")
        assert service.queue.account().received == 0


def traced(service: Service, sequence: int) -> pb.SubmitTrajectoryRequest:
    request = make_request(make_unroll(), digest=service.digest, sequence=sequence)
    request.trace.CopyFrom(encode_trace(make_trace(step_micros=())))
    return request


@pytest.mark.parametrize(
    ("transfer", "stages"),
    [
        (HostTransfer(), ["forward", "V-trace and losses", "backward", "optimiser"]),
        # The host has no more to say of what a device is at while the host goes on.
        (LateDevice(), ["given to the device"]),
    ],
    ids=["host", "device"],
)
def test_a_learner_tells_of_the_parts_of_a_step_in_their_order(transfer: Transfer, stages: list[str]) -> None:
    network = build_network(AGENT.network, SPEC.environment).to(transfer.device)
    told: list[str] = []
    learner = Learner(network, LossConfig(), OptimiserConfig(), total_steps=100, transfer=transfer, on_stage=told.append)
    learner.step(make_unroll(), 0)
    assert told == stages
