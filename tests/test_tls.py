"""TLS between real programs' parts: who is trusted, who is refused, and what an actor says of a learner that it cannot reach."""

import datetime
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from actor_client.client import LearnerClient
from actor_client.config import ActorConfig
from actor_client.tls import TLS, find_obstacle
from impala.errors import ConfigError, Refused
from learner_server.config import LearnerConfig
from learner_server.security import server_credentials
from learner_server.server import LearnerServer
from tests.service import free_port, running_service, wait_until

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


class Files:
    """An authority, and certificates of it and of a foreign one, in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authorities = {"own": trustme.CA(), "foreign": trustme.CA()}

    def ca(self, authority: str = "own") -> Path:
        return self._write(f"{authority}-ca.pem", self.authorities[authority].cert_pem.bytes())

    def pair(self, name: str = "localhost", *, authority: str = "own", expired: bool = False) -> tuple[Path, Path]:
        """Returns the paths of a certificate for `name` and of its key."""
        limits = {"not_before": YESTERDAY - datetime.timedelta(days=1), "not_after": YESTERDAY} if expired else {}
        issued = self.authorities[authority].issue_cert(name, **limits)
        stem = f"{authority}-{name}-{expired}"
        certificate = self._write(f"{stem}.pem", issued.cert_chain_pems[0].bytes())
        return certificate, self._write(f"{stem}-key.pem", issued.private_key_pem.bytes())

    def tls(self, *, shows: tuple[Path, Path] | None = None) -> TLS:
        """Returns what an actor that trusts the own authority has."""
        certificate, key = shows or (None, None)
        return TLS(ca=self.ca(), certificate=certificate, key=key)

    def _write(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def learner(pair: tuple[Path, Path] | None, *, client_ca: Path | None = None) -> Iterator[str]:
    """Yields the address of a learner that shows a certificate, or speaks in clear."""
    credentials = server_credentials(*pair, client_ca=client_ca) if pair else None
    with running_service() as service:
        server = LearnerServer(service.servicer, "127.0.0.1:0", credentials=credentials)
        server.start()
        try:
            yield f"localhost:{server.port}"
        finally:
            server.stop(0.5)


@contextmanager
def actor(address: str, tls: TLS | None) -> Iterator[LearnerClient]:
    client = LearnerClient(address, actor_id="a", incarnation=1, tls=tls)
    try:
        yield client
    finally:
        client.close()


def is_refused(address: str, tls: TLS | None, reason: str) -> None:
    """Asserts that an actor gives up at once, and says why."""
    obstacle = find_obstacle(address, tls)
    assert obstacle is not None
    assert obstacle.hopeless
    assert reason in obstacle.reason
    with actor(address, tls) as client, pytest.raises(Refused) as error:
        client.join(0)
    assert str(error.value) == f"Join: {address}: {obstacle.reason}"


# --- The learner's certificate


def test_an_actor_joins_a_learner_whose_authority_it_trusts(files: Files) -> None:
    with learner(files.pair()) as address, actor(address, files.tls()) as client:
        assert find_obstacle(address, files.tls()) is None
        assert client.join(0).run_id == "test-run"


def test_a_certificate_of_a_foreign_authority_is_refused(files: Files) -> None:
    with learner(files.pair(authority="foreign")) as address:
        is_refused(address, files.tls(), f"the learner's certificate is not from an authority in {files.ca()}")


def test_a_certificate_that_expired_is_refused(files: Files) -> None:
    with learner(files.pair(expired=True)) as address:
        is_refused(address, files.tls(), "the learner's certificate is not valid today")


def test_a_certificate_for_another_name_is_refused(files: Files) -> None:
    with learner(files.pair("learner.example")) as address:
        is_refused(address, files.tls(), "the learner's certificate is for another name than localhost")


def test_a_certificate_for_another_ip_address_is_refused(files: Files) -> None:
    with learner(files.pair("192.0.2.1")) as address:
        is_refused(address.replace("localhost", "127.0.0.1"), files.tls(), "is for another name than 127.0.0.1")


# --- TLS on one side alone


def test_tls_against_clear_is_refused(files: Files) -> None:
    with learner(None) as address:
        is_refused(address, files.tls(), "the learner does not speak TLS: start it with --tls-cert and --tls-key")


def test_clear_against_tls_is_refused(files: Files) -> None:
    with learner(files.pair()) as address:
        is_refused(address, None, "the learner speaks TLS: give --tls-ca")


# --- Mutual TLS


def test_an_actor_with_a_certificate_of_the_learners_authority_joins(files: Files) -> None:
    tls = files.tls(shows=files.pair("actor"))
    with learner(files.pair(), client_ca=files.ca()) as address, actor(address, tls) as client:
        assert find_obstacle(address, tls) is None
        assert client.join(0).run_id == "test-run"


def test_an_actor_without_a_certificate_is_refused(files: Files) -> None:
    with learner(files.pair(), client_ca=files.ca()) as address:
        is_refused(address, files.tls(), "wants a certificate of its own authority, came none: give --tls-cert and --tls-key")


@pytest.mark.parametrize("other", [{"authority": "foreign"}, {"expired": True}], ids=["foreign", "expired"])
def test_an_actor_with_a_certificate_that_the_learner_does_not_trust_is_refused(files: Files, other: dict[str, Any]) -> None:
    shown = files.pair("actor", **other)
    with learner(files.pair(), client_ca=files.ca()) as address:
        is_refused(address, files.tls(shows=shown), f"wants a certificate of its own authority, came {shown[0]}")


# --- What waiting may help


def test_a_learner_that_is_not_up_is_waited_for() -> None:
    obstacle = find_obstacle(f"127.0.0.1:{(port := free_port())}", None)
    assert obstacle is not None
    assert not obstacle.hopeless
    assert obstacle.reason == f"nothing listens on port {port} of 127.0.0.1: is the learner up?"


def test_a_name_that_does_not_resolve_yet_is_waited_for() -> None:
    obstacle = find_obstacle("nowhere.invalid:50051", None)
    assert obstacle is not None
    assert not obstacle.hopeless
    assert obstacle.reason.startswith("the name nowhere.invalid does not resolve")


def test_an_address_that_is_not_reached_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", no_answer)
    obstacle = find_obstacle("learner.example:50051", None)
    assert obstacle is not None
    assert not obstacle.hopeless
    assert obstacle.reason == "no way to learner.example, port 50051 (timed out): is a firewall between?"


def test_a_learner_that_dies_in_mid_handshake_is_waited_for(files: Files) -> None:
    def die() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            connection.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dying = threading.Thread(target=die, name="dying")
        dying.start()
        assert find_obstacle(f"localhost:{listener.getsockname()[1]}", files.tls()) is None
        dying.join()


def test_a_learner_that_was_reached_before_is_waited_for_whatever_it_does(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    with running_service() as service:
        port = free_port()
        server = LearnerServer(service.servicer, f"127.0.0.1:{port}")
        server.start()
        with actor(f"localhost:{port}", None) as client:
            client.start(client.join(0))
            server.stop(0.1)
            other = LearnerServer(service.servicer, f"127.0.0.1:{port}", credentials=server_credentials(*files.pair()))
            other.start()
            try:
                service.publish()
                client._newest_version = 10**6  # so that it asks for weights again
                client._wake()
                wait_until(lambda: "the learner speaks TLS" in caplog.text)
                assert client._failure is None
            finally:
                other.stop(0.1)


# --- Files


def test_a_key_of_another_certificate_is_named(files: Files) -> None:
    (certificate, _), (_, key) = files.pair("a"), files.pair("b")
    with pytest.raises(
        ConfigError, match=f"tls_cert: expected a certificate in {certificate} and its key in {key}, came KEY_VALUES"
    ):
        server_credentials(certificate, key)


def test_a_key_with_a_password_is_refused_and_not_asked_for(files: Files) -> None:
    certificate, key = files.pair()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="came a key with a password"):
        server_credentials(certificate, key)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_a_file_without_certificates_is_named(files: Files, content: bytes) -> None:
    nothing = files.folder / "nothing.pem"
    nothing.write_bytes(content)
    with pytest.raises(ConfigError, match=f"tls_ca: expected certificates in {nothing}, came "):
        TLS(ca=nothing).credentials()
    with pytest.raises(ConfigError, match=f"tls_client_ca: expected certificates in {nothing}, came "):
        server_credentials(*files.pair(), client_ca=nothing)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls_ca: cannot read .*: No such file"):
        TLS(ca=tmp_path / "missing").context()


# --- Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tls_ca": Path("ca"), "tls_cert": Path("cert")}, "tls_key: expected --tls-cert and --tls-key together"),
        ({"tls_ca": Path("ca"), "tls_key": Path("key")}, "tls_key: expected --tls-cert and --tls-key together"),
        ({"tls_cert": Path("cert"), "tls_key": Path("key")}, "tls_cert: expected --tls-ca with it"),
    ],
)
def test_an_actors_flags_that_make_no_sense_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActorConfig(learner="learner.example:50051", **flags)


def test_an_actor_has_what_its_flags_name() -> None:
    config = ActorConfig(learner="a:1", tls_ca=Path("ca"), tls_cert=Path("cert"), tls_key=Path("key"))
    assert config.tls() == TLS(ca=Path("ca"), certificate=Path("cert"), key=Path("key"))
    assert ActorConfig(learner="a:1").tls() is None


def test_authorities_of_actors_without_tls_are_refused() -> None:
    with pytest.raises(ConfigError, match="tls_client_ca: expected --tls-cert and --tls-key with it"):
        LearnerConfig(env=("CartPole-v1",), tls_client_ca=Path("ca"))
