"""The actor that knows nothing but the contract: a real learner takes its unrolls, and finds its policy in them."""

import ast
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from examples import bare_actor
from impala.config import LossConfig
from impala.losses import impala_loss
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.service import running_service

UNROLLS = 3


def read(tensor: pb.Tensor) -> np.ndarray:
    dtype = {value: name for name, value in bare_actor.DTYPES.items()}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def uniform_weights() -> dict[str, np.ndarray]:
    return {"policy_head.weight": np.zeros((2, 4), np.float32), "policy_head.bias": np.zeros(2, np.float32)}


def test_a_learner_takes_its_unrolls_and_computes_the_probabilities_that_it_did() -> None:
    with running_service(capacity=64) as service, grpc.insecure_channel(service.address) as channel:
        assert bare_actor.act(pb_grpc.LearnerStub(channel), UNROLLS) == UNROLLS
        batch = service.queue.take_batch(UNROLLS * service.join().environments, 10.0)
        assert batch is not None
        unroll = batch.map(torch.from_numpy)
        loss = impala_loss(service.network, unroll, LossConfig(), parameter_version=service.store.version)
    assert float(loss.log_rho_abs_lag_0) < 1e-5


RUN = pb.JoinResponse(
    environment_id="CartPole-v1", environments=2, unroll_length=4, network_json="{}", actions=pb.ActionSpec(sizes=[2])
)


class Failure(grpc.RpcError):
    """What a call ends with."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self.code = lambda: code


def test_it_takes_newer_weights_and_stops_when_the_run_is_over() -> None:
    class Stub:
        """Publishes a version for every unroll, and ends the run with the third."""

        def __init__(self) -> None:
            self.versions: list[int] = []
            self.sequences: list[int] = []

        def Join(self, request: pb.JoinRequest, timeout: float) -> pb.JoinResponse:
            return RUN

        def GetParameters(self, request: pb.GetParametersRequest, timeout: float) -> pb.GetParametersResponse:
            assert request.known_version == len(self.versions)
            weights = bare_actor.safetensors.numpy.save(uniform_weights())
            return pb.GetParametersResponse(version=len(self.versions) + 1, parameters=weights)

        def SubmitTrajectory(self, request: pb.SubmitTrajectoryRequest, timeout: float) -> pb.SubmitTrajectoryResponse:
            self.versions.append(request.unroll.parameter_version)
            self.sequences.append(request.sequence)
            over = len(self.versions) == UNROLLS
            reason = pb.REASON_RUN_OVER if over else pb.REASON_UNSPECIFIED
            return pb.SubmitTrajectoryResponse(accepted=not over, reason=reason, parameter_version=len(self.versions) + 1)

    stub: Any = Stub()
    assert bare_actor.act(stub, 100) == UNROLLS - 1
    assert stub.versions == stub.sequences == [1, 2, 3]


def test_its_rows_lie_as_the_contract_says_where_episodes_end() -> None:
    run = pb.JoinResponse(environment_id="CartPole-v1", environments=3, seed=1)
    unroll, episodes = bare_actor.Player(run).collect(uniform_weights(), 7, 200)
    first, terminated, rewards = (read(tensor) for tensor in (unroll.is_first, unroll.terminated, unroll.rewards))
    assert first[0].all()
    assert terminated[:-1].any()
    # After a terminated step comes the reset: it pays nothing and leads to a first observation.
    np.testing.assert_array_equal(first[2:], terminated[:-1])
    assert not first[1].any()
    assert not rewards[first[1:]].any()
    assert rewards[~first[1:]].all()
    # Every step of a finished episode paid 1.
    assert [episode.length for episode in episodes] == [episode.episode_return for episode in episodes]
    assert len(episodes) == terminated.sum()
    assert sum(episode.length for episode in episodes) <= rewards.sum()


def test_it_comes_back_to_a_learner_that_was_away_and_gives_up_on_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare_actor.time, "sleep", lambda seconds: None)
    fates = [Failure(grpc.StatusCode.UNAVAILABLE), Failure(grpc.StatusCode.DEADLINE_EXCEEDED), "answer"]

    def call(request: str, timeout: float) -> str:
        fate = fates.pop(0)
        if isinstance(fate, Failure):
            raise fate
        return fate

    assert bare_actor.patiently(call, "request", 1.0) == "answer"
    fates.append(Failure(grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(grpc.RpcError):
        bare_actor.patiently(call, "request", 1.0)
    assert fates == []


def test_it_joins_again_where_the_learner_no_longer_knows_it() -> None:
    class Stub:
        """A learner that is started anew before the second unroll comes."""

        def __init__(self) -> None:
            self.joined: list[int] = []
            self.sequences: list[int] = []

        def Join(self, request: pb.JoinRequest, timeout: float) -> pb.JoinResponse:
            self.joined.append(request.incarnation)
            return RUN

        def GetParameters(self, request: pb.GetParametersRequest, timeout: float) -> pb.GetParametersResponse:
            assert request.known_version == 0
            return pb.GetParametersResponse(version=1, parameters=bare_actor.safetensors.numpy.save(uniform_weights()))

        def SubmitTrajectory(self, request: pb.SubmitTrajectoryRequest, timeout: float) -> pb.SubmitTrajectoryResponse:
            self.sequences.append(request.sequence)
            if len(self.sequences) == 2:
                raise Failure(grpc.StatusCode.FAILED_PRECONDITION)
            return pb.SubmitTrajectoryResponse(accepted=True, parameter_version=1)

    stub: Any = Stub()
    assert bare_actor.act(stub, 3) == 3
    assert stub.sequences == [1, 2, 1, 2]
    assert stub.joined == sorted(set(stub.joined))
    assert len(stub.joined) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"network_json": '{"network": "shallow"}'},
        {"network_json": '{"normalise_observations": true}'},
        {"network_json": "{}", "environment_wrappers_json": '[["ClipReward", {}]]'},
    ],
    ids=["network", "normalised", "wrapped"],
)
def test_it_refuses_what_it_was_not_written_for(fields: dict[str, str]) -> None:
    class Stub:
        def Join(self, request: pb.JoinRequest, timeout: float) -> pb.JoinResponse:
            return pb.JoinResponse(environment_id="CartPole-v1", actions=pb.ActionSpec(sizes=[2]), **fields)

    stub: Any = Stub()
    with pytest.raises(SystemExit, match="expected the network mlp"):
        bare_actor.act(stub, 1)


def test_it_imports_nothing_of_this_project_but_the_generated_code() -> None:
    tree = ast.parse(Path(bare_actor.__file__).read_text())
    names = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"grpc", "gymnasium", "numpy", "safetensors", "protos"}
