"""What a learner counts by size: in training, and in its service."""

import math
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from impala.errors import CheckpointError
from learner_server.checkpoint_keeper import CheckpointKeeper
from learner_server.histograms import LearnerHistograms, ratios
from learner_server.learner import StepReport
from protos import impala_pb2 as pb
from tests.played import NO_LOSS
from tests.samples import make_request, make_unroll
from tests.service import running_service, wait_until
from tests.test_training import STEPS, train


def report(log_ratios: list[float], valid: list[float] | None = None) -> StepReport:
    """Returns what a learner step says that had one trajectory, of lag 3."""
    valid = valid or [1.0] * len(log_ratios)
    loss = replace(NO_LOSS, log_ratios=torch.tensor([log_ratios]), valid=torch.tensor([valid]))
    return StepReport(loss=loss, grad_norm=0.0, learning_rate=0.0, policy_lags=np.array([3]), skipped=False, parameters={})


def test_a_wait_is_one_however_often_training_looked_up_meanwhile() -> None:
    histograms = LearnerHistograms()
    for over in (False, False, True, True):
        histograms.add_wait(0.5, over=over)
    wait = histograms.stages["wait"]
    assert (wait.count, wait.sum) == (2, 2.0)


def test_ratios_are_of_one_batch_an_interval_and_lags_of_all() -> None:
    histograms = LearnerHistograms()
    for _ in range(2):
        histograms.add_step(report([0.0, 0.0]))
        histograms.add_step(report([0.0, 0.0]))
        histograms.start_interval()
    assert (histograms.ratio.count, histograms.ratio.sum) == (4, 4.0)
    assert (histograms.policy_lag.count, histograms.policy_lag.sum) == (4, 12.0)


def test_ratios_are_those_of_valid_steps_that_have_one_and_finite() -> None:
    found = ratios(report([0.0, 5.0, math.nan, 100.0, -math.inf], [1.0, 0.0, 1.0, 1.0, 1.0]).loss)
    assert found.tolist() == pytest.approx([1.0, math.exp(10.0), 0.0])


def test_training_counts_the_lags_that_it_trained_on(tmp_path: Path) -> None:
    histograms = LearnerHistograms()
    train(tmp_path, {0: 8}, total_steps=8 * STEPS, histograms=histograms)
    # Of versions 1 to 4 and of 5 to 8, by weights of versions 1 and 2.
    assert (histograms.policy_lag.count, histograms.policy_lag.sum) == (8, 4 * 1 - 10 + 4 * 2 - 26)
    assert histograms.ratio.count > 0


def test_lags_of_what_is_replayed_are_not_counted(tmp_path: Path) -> None:
    histograms = LearnerHistograms()
    run = train(tmp_path, {0: 10}, replay_fraction=0.5, total_steps=10 * STEPS, histograms=histograms)
    # Two at a time, of versions 1 to 10, by weights of versions 1 to 5; as many replayed, but for the first time.
    assert (histograms.policy_lag.count, histograms.policy_lag.sum) == (10, 2 * 15 - 55)
    replayed = [figures["replayed_lag_mean"] for figures in run.figures if figures["total"] is not None]
    assert any(lag is not None for lag in replayed)


def test_each_stage_of_training_is_timed(tmp_path: Path) -> None:
    histograms = LearnerHistograms()
    train(tmp_path, {0: 12}, spoilt=6, total_steps=12 * STEPS, histograms=histograms)
    # An update that is skipped publishes nothing. Checkpoints are written at the start and at the end.
    assert {stage: each.count for stage, each in histograms.stages.items()} == {
        "wait": 3,
        "step": 3,
        "publish": 2,
        "checkpoint": 2,
    }
    assert all(each.sum > 0.0 for each in histograms.stages.values())


def test_a_checkpoint_that_fails_took_its_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CheckpointError("full")

    histograms = LearnerHistograms()
    monkeypatch.setattr(CheckpointKeeper, "write", fail)
    with pytest.raises(CheckpointError):
        train(tmp_path, {0: 4}, total_steps=4 * STEPS, histograms=histograms)
    assert histograms.stages["checkpoint"].count == 2


def test_calls_are_timed_by_method_and_unrolls_in_line() -> None:
    with running_service() as service:
        histograms = service.servicer._histograms
        service.stub.SubmitTrajectory(make_request(make_unroll(), digest=service.digest, sequence=1), timeout=30)
        assert {method: each.count for method, each in histograms.rpc.items()} == {
            "Join": 1,
            "GetParameters": 0,
            "SubmitTrajectory": 1,
        }
        assert histograms.rpc["SubmitTrajectory"].sum >= histograms.line_wait.sum
        assert histograms.line_wait.count == 1


def test_a_call_that_is_refused_is_timed_too() -> None:
    with running_service() as service:
        histograms = service.servicer._histograms
        with pytest.raises(grpc.RpcError):
            service.stub.GetParameters(pb.GetParametersRequest(actor_id="tester", known_version=99), timeout=30)
        wait_until(lambda: histograms.rpc["GetParameters"].count == 1)


def test_messages_are_counted_by_their_size() -> None:
    with running_service() as service:
        histograms = service.servicer._histograms
        before = (histograms.messages.count, histograms.messages.sum)
        request = make_request(make_unroll(), digest=service.digest, sequence=1)
        service.stub.SubmitTrajectory(request, timeout=30)
        assert (histograms.messages.count, histograms.messages.sum) == (before[0] + 1, before[1] + request.ByteSize())
