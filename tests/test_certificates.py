"""impala-certs: what it writes is what learner and actors take, and nobody else may read its secrets."""

import stat
from pathlib import Path

import pytest
from cryptography import x509

from actor_client.tls import TLS, find_obstacle
from impala.errors import ConfigError
from impala.tokens import read_token
from learner_server.certificates import CertificatesConfig, write_certificates
from tests.test_tls import actor, learner

SECRETS = {"ca-key.pem", "learner-key.pem", "actor-key.pem", "token"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "certs"


def make(folder: Path, *hosts: str, days: int = 365) -> list[str]:
    """Returns the names of the files that are new."""
    config = CertificatesConfig(dir=folder, hosts=hosts or ("localhost", "127.0.0.1"), days=days)
    return sorted(path.name for path in write_certificates(config))


def shown_by_actors(folder: Path) -> TLS:
    return TLS(ca=folder / "ca.pem", certificate=folder / "actor.pem", key=folder / "actor-key.pem")


def test_learner_and_actor_trust_each_other_by_it(folder: Path) -> None:
    make(folder)
    pair = folder / "learner.pem", folder / "learner-key.pem"
    with learner(pair, client_ca=folder / "ca.pem") as address, actor(address, shown_by_actors(folder)) as client:
        assert client.join(0).run_id == "test-run"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_names_and_ip_addresses_are_both_good(folder: Path, host: str) -> None:
    make(folder, host)
    with learner((folder / "learner.pem", folder / "learner-key.pem")) as address:
        assert find_obstacle(address.replace("localhost", host), TLS(ca=folder / "ca.pem")) is None


def test_an_actors_certificate_is_none_for_a_learner(folder: Path) -> None:
    make(folder)
    with learner((folder / "actor.pem", folder / "actor-key.pem")) as address:
        obstacle = find_obstacle(address, TLS(ca=folder / "ca.pem"))
    assert obstacle is not None
    assert obstacle.hopeless


def test_secrets_are_the_owners_alone(folder: Path) -> None:
    assert set(make(folder)) == SECRETS | {"ca.pem", "learner.pem", "actor.pem"}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == SECRETS
    assert all(mode == 0o644 for name, mode in modes.items() if name not in SECRETS)


def test_the_token_is_one_that_a_learner_takes_and_new_each_time(folder: Path, tmp_path: Path) -> None:
    make(folder)
    make(tmp_path / "other")
    assert read_token(folder / "token") != read_token(tmp_path / "other" / "token")


def test_authority_and_token_stay_when_it_is_called_again(folder: Path) -> None:
    make(folder, "old.example")
    kept = {name: (folder / name).read_bytes() for name in ("ca.pem", "ca-key.pem", "token")}
    assert make(folder, "localhost") == ["actor-key.pem", "actor.pem", "learner-key.pem", "learner.pem"]
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    with learner((folder / "learner.pem", folder / "learner-key.pem")) as address:
        assert find_obstacle(address, TLS(ca=folder / "ca.pem")) is None


def test_certificates_are_valid_for_the_days_asked_for_and_the_authority_for_longer(folder: Path) -> None:
    make(folder, days=7)
    spans = {}
    for name in ("ca", "learner", "actor"):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        spans[name] = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days
    assert spans == {"ca": 70, "learner": 7, "actor": 7}


def test_the_key_of_another_authority_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder)
    make(tmp_path / "other")
    (folder / "ca-key.pem").write_bytes((tmp_path / "other" / "ca-key.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"expected the key of .*ca\.pem in .*ca-key\.pem, came another"):
        make(folder)


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem"])
def test_half_an_authority_is_refused_and_not_replaced(folder: Path, name: str) -> None:
    make(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match="dir: expected an authority in"):
        make(folder)
    assert not (folder / name).exists()


def test_an_authority_that_has_expired_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner_server.certificates._AUTHORITY_TERMS", 0)
    make(folder)
    with pytest.raises(ConfigError, match=r"ca\.pem has expired; remove it and ca-key\.pem"):
        make(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="dir: cannot make"):
        make(tmp_path / "file" / "certs")


def test_nothing_is_issued_that_outlives_its_authority(folder: Path) -> None:
    make(folder, days=7)
    make(folder, days=60)
    with pytest.raises(ConfigError, match=r"^days: expected at most (69|70), when .*ca\.pem expires, came 71"):
        make(folder, days=71)


@pytest.mark.parametrize(
    ("hosts", "days", "field"),
    [
        ((), 1, "hosts"),
        (("a",), 0, "days"),
        (("a",), 4_000_000, "days"),
        (("bücher.example",), 1, "hosts"),
        (("learner.example:50051",), 1, "hosts"),
        (("[::1]",), 1, "hosts"),
    ],
)
def test_what_makes_no_certificate_is_refused_by_name(folder: Path, hosts: tuple[str, ...], days: int, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected"):
        write_certificates(CertificatesConfig(dir=folder, hosts=hosts, days=days))
