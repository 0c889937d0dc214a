"""grpc.health.v1 on a port of its own: what probes are told, by learner and by actor."""

import socket
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actor_client.client import LearnerClient
from actor_client.config import ActorConfig
from actor_client.health import HealthConfig, health_port, is_serving
from impala.errors import ConfigError
from learner_server.config import LearnerConfig
from learner_server.server import LearnerServer
from tests.service import free_port, running_service, wait_until


def serves(port: int) -> bool:
    return is_serving(HealthConfig(address=f"127.0.0.1:{port}"))


def test_an_actor_serves_while_its_learner_answers() -> None:
    port = free_port()
    with health_port(f"127.0.0.1:{port}") as report, running_service() as service:
        server = LearnerServer(service.servicer, "127.0.0.1:0")
        client = LearnerClient(f"127.0.0.1:{server.start()}", actor_id="a", incarnation=1, reached=report)
        assert not serves(port)
        client.start(client.join(0))
        assert serves(port)
        server.stop(0.1)
        client._newest_version = 10**6  # so that it asks for weights again
        client._wake()
        wait_until(lambda: not serves(port))
        client.close()


def test_a_probe_asks_no_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    with health_port(address) as report:
        report(True)
        for name in ("http_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert is_serving(HealthConfig(address=address))


def test_no_port_is_opened_where_none_is_asked_for() -> None:
    with health_port(None) as report:
        report(True)


def test_nobody_watches_on_the_port_of_probes_and_keeps_them_out() -> None:
    with running_service() as service:
        server = LearnerServer(service.servicer, "127.0.0.1:0", health_address="127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
            watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30.0) for _ in range(20)]
            for watch in watches:
                with pytest.raises(grpc.RpcError) as refused:
                    next(watch)
                assert refused.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert serves(server.health_port)
        server.stop(0.0)


def test_a_learner_serves_health_apart_from_all_else() -> None:
    with running_service() as service:
        server = LearnerServer(service.servicer, "127.0.0.1:0", token="t" * 16, health_address="127.0.0.1:0")
        server.start()
        port = server.health_port
        client = LearnerClient(f"127.0.0.1:{port}", actor_id="a", incarnation=1, token="t" * 16)
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            client.join(0)
        client.close()
        assert serves(port)
        server.stop(0.1)
        assert not serves(port)


def test_a_health_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken, running_service() as service:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"health: cannot listen on {address}"), health_port(address):
            pass
        server = LearnerServer(service.servicer, "127.0.0.1:0", health_address=address)
        with pytest.raises(ConfigError, match=f"health: cannot listen on {address}"):
            server.start()


def test_health_is_an_address() -> None:
    with pytest.raises(ConfigError, match="health: expected HOST:PORT, came '50052'"):
        LearnerConfig(env=("CartPole-v1",), health="50052")
    with pytest.raises(ConfigError, match="health: expected HOST:PORT, came '50052'"):
        ActorConfig(learner="a:1", health="50052")
    with pytest.raises(ConfigError, match="address: expected HOST:PORT, came '50052'"):
        HealthConfig(address="50052")


@pytest.mark.system
def test_the_program_exits_with_the_answer() -> None:
    def ask(address: str) -> int:
        return subprocess.run([sys.executable, "-m", "actor_client.health", address], capture_output=True, check=False).returncode

    address = f"127.0.0.1:{free_port()}"
    assert ask(address) == 1
    with health_port(address) as report:
        assert ask(address) == 1
        report(True)
        assert ask(address) == 0
    assert ask("nonsense") == 2
