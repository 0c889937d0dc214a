"""PEM files of TLS: read and checked where they are named, for gRPC says of a bad one nothing that helps."""

import ssl
from pathlib import Path

from impala.errors import ConfigError


def read_pem(path: Path, *, field: str) -> bytes:
    """Returns a file's bytes. `field` is the setting that names it.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {error.strerror}") from error


def load_authorities(context: ssl.SSLContext, path: Path, *, field: str) -> bytes:
    """Makes `context` trust the certificates in a file; returns its bytes.

    Raises:
        ConfigError: it cannot be read, or holds no certificate.
    """
    pem = read_pem(path, field=field)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii", errors="ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{field}: expected certificates in {path}, came {_said(error)}") from error
    return pem


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Makes `context` show a certificate (chain) whose key this is; returns the bytes of certificate and key.

    Raises:
        ConfigError: a file cannot be read, the key is not the certificate's, or it has a password.
    """
    pair = read_pem(certificate, field="tls_cert"), read_pem(key, field="tls_key")
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"tls_cert: expected a certificate in {certificate} and its key in {key}, came {_said(error)}") from error
    return pair


def _said(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error) or "nothing of the kind"


def _no_password() -> str:
    # OpenSSL would ask for one on the terminal.
    raise ValueError("a key with a password")
