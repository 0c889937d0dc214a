"""Who means ill, on a real server: connections, messages that drip, and what is answered without the token."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import learner_server.server
from benchmarks.raw_http2 import PREFACE, RESET, acknowledge_settings, begin_call, begin_message, is_closed, kinds, part_of_message
from learner_server.intake import Intake
from learner_server.server import LearnerServer
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.samples import make_request, make_unroll
from tests.service import Service, running_service, wait_until

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's
BEARER = (("authorization", f"Bearer {TOKEN}"),)
METHODS = ["Join", "GetParameters", "SubmitTrajectory"]
STREAMING = ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/nobody.v1.Nothing/Method"]
PATIENCE = 30.0
OPTIONS = learner_server.server._OPTIONS


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as running:
        yield running


@contextmanager
def serving(service: Service, **settings: Any) -> Iterator[LearnerServer]:
    """Yields a second server of the same service."""
    server = LearnerServer(service.servicer, "127.0.0.1:0", **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop(0.0)


@contextmanager
def connected(server: LearnerServer, opening: bytes = b"", *, times: int = 1) -> Iterator[list[socket.socket]]:
    """Yields so many connections, all of which have sent `opening`."""
    with ExitStack() as open_ones:
        connections = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)) for _ in range(times)
        ]
        for connection in connections:
            connection.sendall(opening)
        yield connections


def answers(server: LearnerServer) -> bool:
    """Whether an actor that comes now is answered; on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        request = pb.GetParametersRequest(actor_id="tester", known_version=1)
        try:
            return bool(pb_grpc.LearnerStub(channel).GetParameters(request, timeout=PATIENCE, metadata=BEARER).not_modified)
        except grpc.RpcError:
            return False


def response_of(connection: socket.socket, within: Callable[[bytes], bool]) -> bytes:
    """Returns what the server has sent, once it is `within` it."""
    came = b""
    connection.settimeout(PATIENCE)
    while not within(came):
        more = connection.recv(65_536)
        assert more, came
        came += more
    return came


# --- connections


@pytest.mark.parametrize("opening", [b"", PREFACE], ids=["silent", "HTTP/2"])
def test_connections_beyond_the_most_are_closed_and_those_before_go_on(service: Service, opening: bytes) -> None:
    with serving(service, max_connections=4) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.LearnerStub(channel)
        request = pb.GetParametersRequest(actor_id="tester", known_version=1)
        assert stub.GetParameters(request, timeout=PATIENCE).not_modified
        with connected(server, times=20) as connections:
            wait_until(lambda: sum(map(is_closed, connections)) == 17)
            assert stub.GetParameters(request, timeout=PATIENCE).not_modified
        wait_until(lambda: answers(server))


@pytest.mark.parametrize(
    ("opening", "limit"),
    [(b"", "grpc.server_handshake_timeout_ms"), (PREFACE, "grpc.max_connection_idle_ms")],
    ids=["silent", "HTTP/2"],
)
def test_connections_that_never_call_are_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch, opening: bytes, limit: str
) -> None:
    assert any(name == limit for name, _ in OPTIONS)
    brief = {limit: 300}
    monkeypatch.setattr(learner_server.server, "_OPTIONS", tuple((name, brief.get(name, value)) for name, value in OPTIONS))
    with serving(service) as server, connected(server, opening, times=3) as connections:
        wait_until(lambda: all(map(is_closed, connections)))
        assert answers(server)


def test_a_connection_has_so_many_calls_at_once(service: Service) -> None:
    # With places for all of them, or whoever comes next would wait for one.
    with serving(service, intake=Intake(1000)) as server, connected(server, PREFACE) as connections:
        settings = response_of(connections[0], lambda came: len(kinds(came)) >= 1)
        connections[0].sendall(acknowledge_settings())
        for index in range(300):
            connections[0].sendall(begin_call("Join", 2 * index + 1))
        response_of(connections[0], lambda came: kinds(settings + came).count(RESET) == 300 - 256)
        assert answers(server)


# --- messages


@pytest.mark.parametrize("method", METHODS)
def test_a_message_that_drips_is_ended_and_others_are_answered(service: Service, method: str) -> None:
    with serving(service, intake=Intake(8, seconds=0.3)) as server, connected(server, PREFACE, times=4) as connections:
        for connection in connections:
            connection.sendall(begin_call(method, 1) + begin_message(1000, 1) + part_of_message(b"x", 1))
        assert answers(server)
        wait_until(lambda: service.servicer.refused["unavailable:message"] == 4)
        response_of(connections[0], lambda came: b"message: did not come whole in time" in came)
        assert service.servicer.refused == {"unavailable:message": 4}


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_question_after_health_that_drips_makes_room_and_takes_no_place_of_an_actors(service: Service, method: str) -> None:
    asked, messages = Intake(2, seconds=600.0, seconds_when_full=0.2), Intake(8)
    dripped = begin_call(f"/grpc.health.v1.Health/{method}", 1) + begin_message(1000, 1) + part_of_message(b"x", 1)
    with (
        serving(service, token=TOKEN, intake=messages, health_intake=asked) as server,
        connected(server, PREFACE + dripped, times=2) as connections,
    ):
        wait_until(lambda: not asked._free)
        assert messages._free == 8
        assert answers(server)
        with connected(server, PREFACE + dripped):
            wait_until(lambda: not asked._free)
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status
        assert any(b"message: did not come whole in time" in connection.recv(65_536) for connection in connections)


def test_a_message_whose_sender_goes_away_counts_as_incomplete(service: Service) -> None:
    with serving(service) as server:
        with connected(server, PREFACE) as connections:
            connections[0].sendall(begin_call("SubmitTrajectory", 1) + begin_message(1000, 1) + part_of_message(b"x", 1))
        wait_until(lambda: service.servicer.refused == {"incomplete:message": 1})


def test_drippers_in_every_place_make_room_for_who_comes(service: Service) -> None:
    intake = Intake(4, seconds=600.0, seconds_when_full=0.2)
    with serving(service, intake=intake) as server, connected(server, PREFACE, times=8) as connections:
        for connection in connections:
            connection.sendall(begin_call("SubmitTrajectory", 1) + begin_message(1000, 1))
        wait_until(lambda: not intake._free)
        assert answers(server)
        assert service.servicer.refused["unavailable:message"] > 0


def test_a_message_that_comes_slowly_but_whole_is_answered(service: Service) -> None:
    content = make_request(make_unroll(), digest=service.digest).SerializeToString()
    with serving(service) as server, connected(server, PREFACE) as connections:
        connections[0].sendall(begin_call("SubmitTrajectory", 1) + begin_message(len(content), 1))
        for start in range(0, len(content), 100):
            connections[0].sendall(part_of_message(content[start : start + 100], 1))
        wait_until(lambda: service.actors.find("tester", 1).ledger.answer(1) is True)


def test_a_call_without_a_message_is_refused(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary("/impala.v1.Learner/Join")(iter([]), timeout=PATIENCE)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "message: expected one, came none"
    assert service.servicer.refused == {"invalid_argument:message": 1}


def test_a_server_takes_no_message_over_its_runs_limit(service: Service) -> None:
    with serving(service, max_message_bytes=2000) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/impala.v1.Learner/SubmitTrajectory")
        for size, status in ((2000, grpc.StatusCode.INVALID_ARGUMENT), (2001, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            with pytest.raises(grpc.RpcError) as refused:
                call(b"\xff" * size, timeout=PATIENCE)
            assert refused.value.code() == status


def test_a_message_that_grpc_compressed_is_not_decompressed(service: Service) -> None:
    with serving(service) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/impala.v1.Learner/Join")(bytes(1_000_000), timeout=PATIENCE, compression=grpc.Compression.Gzip)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert service.servicer.bytes_received < 10_000


# --- without the token


@pytest.mark.parametrize("method", [*METHODS, *STREAMING])
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)], ids=["none", "wrong"])
def test_without_the_token_a_call_is_refused_before_its_message_comes(
    service: Service, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    with serving(service, token=TOKEN) as server, connected(server, PREFACE) as connections:
        # All of the message but its bytes.
        connections[0].sendall(begin_call(method, 1, metadata) + begin_message(1000, 1))
        response_of(connections[0], lambda came: b"authorization: expected 'Bearer TOKEN'" in came)
        assert service.servicer.refused == {"unauthenticated:authorization": 1}
        assert answers(server)


def test_without_the_token_health_is_answered_and_may_be_watched(service: Service) -> None:
    with serving(service, token=TOKEN) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert stub.Check(request, timeout=PATIENCE).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request, timeout=PATIENCE)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
