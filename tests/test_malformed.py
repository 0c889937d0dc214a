"""Health checks and reflection, with bytes that are not their messages, and the method that gRPC leaves undone."""

import logging

import grpc
import pytest

from tests.service import running_service

PATIENCE = 30.0


def refusal(address: str, path: str, data: bytes, *, streams: bool = False) -> grpc.StatusCode:
    with grpc.insecure_channel(address) as channel:
        try:
            if streams:
                for _ in channel.stream_stream(path)(iter([data]), timeout=PATIENCE):
                    pass
            elif path.endswith("/Watch"):
                next(channel.unary_stream(path)(data, timeout=PATIENCE))
            else:
                channel.unary_unary(path)(data, timeout=PATIENCE)
        except grpc.RpcError as error:
            status: grpc.StatusCode = error.code()
            return status
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_health_check_that_is_none_is_refused_without_a_traceback(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with running_service() as service, caplog.at_level(logging.ERROR):
        assert refusal(service.address, f"/grpc.health.v1.Health/{method}", b"\xff\xff") == grpc.StatusCode.INVALID_ARGUMENT
        assert refusal(service.address, f"/grpc.health.v1.Health/{method}", b"") == grpc.StatusCode.OK
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


def test_a_question_to_reflection_that_is_none_is_refused_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with running_service() as service, caplog.at_level(logging.ERROR):
        assert refusal(service.address, path, b"\xff\xff", streams=True) == grpc.StatusCode.INVALID_ARGUMENT
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


def test_the_list_of_health_checks_is_not_there_and_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with running_service() as service, caplog.at_level(logging.ERROR):
        assert refusal(service.address, "/grpc.health.v1.Health/List", b"") == grpc.StatusCode.UNIMPLEMENTED
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
