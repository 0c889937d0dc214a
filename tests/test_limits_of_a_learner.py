"""A learner as its users start it, under the limits that its flags say."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from benchmarks.raw_http2 import PREFACE, is_closed
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.programs import ENDLESS, Programs, exit_code

pytestmark = pytest.mark.system

# A call may wait for its time, which at this rate is long.
PATIENCE = 60.0


def test_a_learner_holds_callers_to_the_limits_of_its_flags(programs: Programs, tmp_path: Path) -> None:
    flags = ["--max-calls-per-second", "10", "--max-connections", "3", "--max-envs", "32", "--max-in-flight", "2"]
    learner = programs.learner(tmp_path / "run", *flags, *ENDLESS)
    address = programs.address(learner)
    host, _, port = address.rpartition(":")
    with grpc.insecure_channel(address) as channel, ExitStack() as connections:
        stub = pb_grpc.LearnerStub(channel)
        joined = stub.Join(pb.JoinRequest(protocol_version=1, actor_id="a", incarnation=1), timeout=PATIENCE)

        assert joined.max_message_bytes < 200_000
        with pytest.raises(grpc.RpcError) as refused:
            stub.Join(pb.JoinRequest(host="x" * joined.max_message_bytes), timeout=PATIENCE)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

        asks = [stub.GetParameters.future(pb.GetParametersRequest(actor_id="a"), timeout=PATIENCE) for _ in range(60)]
        answers = {ask.code() for ask in asks if ask.exception() is not None}
        assert answers == {grpc.StatusCode.UNAVAILABLE}
        assert sum(ask.exception() is None for ask in asks) >= 9

        others = [connections.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE)) for _ in range(10)]
        for connection in others:
            # With it, a connection that may stay does so for minutes.
            with suppress(OSError):
                connection.sendall(PREFACE)
        programs.wait_until(lambda: sum(map(is_closed, others)) >= 8, learner)
    learner.terminate()
    assert exit_code(learner) == 0
