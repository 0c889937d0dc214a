from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actor_client.client import LearnerClient
from actor_client.config import ActorConfig
from actor_client.tls import TLS
from impala.errors import ConfigError, Refused
from impala.tokens import read_token
from learner_server.config import LearnerConfig
from learner_server.security import server_credentials
from learner_server.server import LearnerServer
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.service import Service, running_service

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's


@contextmanager
def guarded(service: Service, *, credentials: grpc.ServerCredentials | None = None) -> Iterator[LearnerServer]:
    """Yields a second server of the same service, one that asks for TOKEN."""
    server = LearnerServer(service.servicer, "127.0.0.1:0", token=TOKEN, credentials=credentials)
    server.start()
    try:
        yield server
    finally:
        server.stop(0.5)


def address(server: LearnerServer) -> str:
    return f"localhost:{server.port}"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def credentials_of(authority: trustme.CA, folder: Path) -> grpc.ServerCredentials:
    certificate = authority.issue_cert("localhost")
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (folder / "cert.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    return server_credentials(folder / "cert.pem", folder / "key.pem")


CALLS = [
    ("Join", pb.JoinRequest(protocol_version=1, actor_id="a", incarnation=1)),
    ("GetParameters", pb.GetParametersRequest(actor_id="a")),
    ("SubmitTrajectory", pb.SubmitTrajectoryRequest(actor_id="a")),
]


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)])
@pytest.mark.parametrize(("method", "request_"), CALLS)
def test_without_the_token_no_call_is_answered(method: str, request_: object, metadata: tuple[tuple[str, str], ...]) -> None:
    with running_service() as service, guarded(service) as server, grpc.insecure_channel(address(server)) as channel:
        with pytest.raises(grpc.RpcError) as error:
            getattr(pb_grpc.LearnerStub(channel), method)(request_, timeout=10, metadata=metadata)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert TOKEN not in error.value.details()
        assert service.servicer.refused["unauthenticated:authorization"] == 1


def test_reflection_asks_for_the_token_too() -> None:
    with running_service() as service, guarded(service) as server, grpc.insecure_channel(address(server)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            list(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_health_is_answered_without_a_token() -> None:
    with running_service() as service, guarded(service) as server, grpc.insecure_channel(address(server)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_an_actor_with_the_token_is_answered_over_tls(authority: trustme.CA, tmp_path: Path) -> None:
    with (
        running_service() as service,
        guarded(service, credentials=credentials_of(authority, tmp_path)) as server,
        authority.cert_pem.tempfile() as trusted,
    ):
        client = LearnerClient(address(server), actor_id="a", incarnation=1, token=TOKEN, tls=TLS(ca=Path(trusted)))
        assert client.join(0).run_id == "test-run"
        client.close()


def test_an_actor_with_a_wrong_token_is_refused_for_good() -> None:
    with running_service() as service, guarded(service) as server:
        client = LearnerClient(address(server), actor_id="a", incarnation=1, token="x" * 20)
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            client.join(0)
        client.close()


def test_a_tls_port_does_not_speak_in_clear(authority: trustme.CA, tmp_path: Path) -> None:
    with running_service() as service, guarded(service, credentials=credentials_of(authority, tmp_path)) as server:
        with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as error:
            pb_grpc.LearnerStub(channel).GetParameters(CALLS[1][1], timeout=10)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_beside_tls_this_machines_own_actors_are_served_on_loopback(authority: trustme.CA, tmp_path: Path) -> None:
    with running_service() as service, guarded(service, credentials=credentials_of(authority, tmp_path)) as server:
        client = LearnerClient(f"127.0.0.1:{server.local_port}", actor_id="a", incarnation=1, token=TOKEN)
        assert client.join(0).run_id == "test-run"
        client.close()


@pytest.mark.parametrize("name", ["tls_key", "tls_cert"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    paths = {"tls_key": tmp_path / "key.pem", "tls_cert": tmp_path / "cert.pem"}
    for other in paths.keys() - {name}:
        paths[other].write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{name}: cannot read"):
        server_credentials(paths["tls_cert"], paths["tls_key"])


@pytest.mark.parametrize("missing", [{"token_file": None}, {"token_file": None, "tls_cert": None, "tls_key": None}])
def test_a_learner_that_others_can_reach_wants_token_and_tls_or_to_be_told(missing: dict[str, None]) -> None:
    files = {"token_file": Path("token"), "tls_cert": Path("cert"), "tls_key": Path("key")}
    listen = {"env": ("CartPole-v1",), "listen": "0.0.0.0:50051"}
    LearnerConfig(**listen, **files)
    LearnerConfig(**listen, **{**files, **missing}, insecure=True)
    with pytest.raises(ConfigError, match=r"listen: 0\.0\.0\.0:50051 can be reached from other machines"):
        LearnerConfig(**listen, **{**files, **missing})


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="tls_key"):
        LearnerConfig(env=("CartPole-v1",), tls_cert=Path("cert"))


def test_an_actor_never_sends_a_token_in_clear_to_another_machine() -> None:
    ActorConfig(learner="learner.example:50051", token_file=Path("token"), tls_ca=Path("ca"))
    ActorConfig(learner="127.0.0.1:50051", token_file=Path("token"))
    with pytest.raises(ConfigError, match=r"token_file: would be sent in clear to learner\.example:50051"):
        ActorConfig(learner="learner.example:50051", token_file=Path("token"))


def test_a_token_is_read_without_the_white_space_around_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f" {TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize("content", ["", "short", "two words of many letters", "sixteen\x00characters"])
def test_a_file_without_a_usable_token_is_refused_and_not_printed(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError, match="one word of at least 16") as error:
        read_token(tmp_path / "token")
    assert not content or content not in str(error.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token_file: cannot read"):
        read_token(tmp_path / "token")
