"""impala-certs: an authority of one's own, and what learner and actors show each other. For development and private networks."""

import datetime
import ipaddress
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from impala.errors import ConfigError

_PRIVATE, _PUBLIC = 0o600, 0o644
# The authority is valid as many times as long as what it issues.
_AUTHORITY_TERMS = 10
# A hundred years, and the authority's thousand: what calendars take.
_MOST_DAYS = 36_500
# Clocks of machines differ.
_BACKDATED = datetime.timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class CertificatesConfig:
    """Makes a token, an authority, and certificates of it for a learner and its actors.

    Keeps an authority and a token that are there already: call it again for other names, or when certificates have expired.
    """

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and IP addresses by which actors call the learner."""
    dir: Path = Path("certs")
    """Folder to write to: learner.pem, learner-key.pem and token for the learner; ca.pem and token for actors; actor.pem and
    actor-key.pem too where the learner asks for them; ca-key.pem for nobody."""
    days: int = 365
    """How long certificates are valid."""

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ConfigError("hosts: expected the names by which actors call the learner, came none")
        if self.days < 1:
            raise ConfigError(f"days: expected at least 1, came {self.days}")
        if self.days > _MOST_DAYS:
            raise ConfigError(f"days: expected at most {_MOST_DAYS}, came {self.days}")


class Authority:
    """Issues certificates.

    Args:
        certificate, key: the authority's own.
        days: how long what it issues is valid.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, days: int) -> None:
        self.certificate = certificate
        self.key = key
        self._days = days

    @classmethod
    def found(cls, *, days: int) -> "Authority":
        """Returns a new one, valid longer than what it issues."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("IMPALA private authority")
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(name, name, key, days * _AUTHORITY_TERMS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key, days=days)

    @classmethod
    def load(cls, certificate: Path, key: Path, *, days: int) -> "Authority":
        """Returns that of two PEM files.

        Raises:
            ConfigError: they cannot be read or are no authority, or it has expired.
        """
        try:
            own = x509.load_pem_x509_certificate(certificate.read_bytes())
            private = serialization.load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"dir: expected an authority in {certificate} and {key}, came {error}") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != own.public_key():
            raise ConfigError(f"dir: expected the key of {certificate} in {key}, came another; remove both for a new authority")
        if own.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
            raise ConfigError(f"dir: {certificate} has expired; remove it and {key.name} for a new authority")
        left = (own.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
        if left < days:
            raise ConfigError(
                f"days: expected at most {left}, when {certificate} expires, came {days}; or remove it and {key.name}"
            )
        return cls(own, private, days=days)

    def issue(self, name: str, hosts: tuple[str, ...], usage: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        """Returns a certificate and its key, PEM, for names and IP addresses and one extended key usage."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_name(name), self.certificate.subject, key, self._days)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return _pem(builder.sign(self.key, hashes.SHA256())), private_pem(key)


def write_certificates(config: CertificatesConfig) -> list[Path]:
    """Writes what `CertificatesConfig` says; returns the files that are new.

    Raises:
        ConfigError: the folder cannot be written to, or what is there is no authority.
    """
    files = _Files(config.dir)
    certificate, key = config.dir / "ca.pem", config.dir / "ca-key.pem"
    if certificate.exists() or key.exists():
        authority = Authority.load(certificate, key, days=config.days)
    else:
        authority = Authority.found(days=config.days)
        files.write(key, private_pem(authority.key), _PRIVATE)
        files.write(certificate, _pem(authority.certificate), _PUBLIC)
    issued = {
        "learner": authority.issue("IMPALA learner", config.hosts, ExtendedKeyUsageOID.SERVER_AUTH),
        "actor": authority.issue("IMPALA actor", ("actor",), ExtendedKeyUsageOID.CLIENT_AUTH),
    }
    for name, (pem, private) in issued.items():
        files.write(config.dir / f"{name}-key.pem", private, _PRIVATE)
        files.write(config.dir / f"{name}.pem", pem, _PUBLIC)
    if not (config.dir / "token").exists():
        files.write(config.dir / "token", f"{secrets.token_urlsafe(32)}\n".encode(), _PRIVATE)
    return files.written


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns a key as PKCS #8, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def main() -> None:
    """Writes certificates and exits: 0 done, 2 cannot run as asked."""
    try:
        for path in write_certificates(tyro.cli(CertificatesConfig, prog="impala-certs")):
            print(path)  # noqa: T201 - what this program has to say
    except ConfigError as error:
        print(f"impala-certs: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(2)


class _Files:
    """Writes files whole or not at all, each private from its first byte."""

    def __init__(self, folder: Path) -> None:
        self.written: list[Path] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"dir: cannot make {folder}: {error.strerror}") from error

    def write(self, path: Path, content: bytes, mode: int) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            part.unlink(missing_ok=True)
            part.touch(mode=mode, exist_ok=False)
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            raise ConfigError(f"dir: cannot write {path}: {error.strerror}") from error
        self.written.append(path)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if set(host) & set(":[]/"):
        raise ConfigError(f"hosts: expected a name or an IP address, without a port or brackets, came {host!r}")
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"hosts: expected a name or an IP address, came {host!r}") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


if __name__ == "__main__":
    main()
