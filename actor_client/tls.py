"""TLS as an actor uses it, and why a learner cannot be reached: what is worth waiting for, and what is not."""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from impala.addresses import split_address
from impala.pem import load_authorities, load_pair

_PATIENCE_SECONDS = 3.0

# OpenSSL's numbers of X509_V_ERR_*: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_IP = 9, 10, 62, 64


@dataclass(frozen=True, kw_only=True)
class TLS:
    """What an actor trusts and shows, PEM files.

    Attributes:
        ca: certificates of the authorities to trust.
        certificate, key: to show to a learner that asks for one; None for none.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns these for a gRPC channel.

        Raises:
            ConfigError: a file cannot be read or used.
        """
        _, authorities, (certificate, key) = self._load()
        return grpc.ssl_channel_credentials(authorities, key, certificate)

    def context(self) -> ssl.SSLContext:
        """Returns these for a socket.

        Raises:
            ConfigError: a file cannot be read or used.
        """
        return self._load()[0]

    def _load(self) -> tuple[ssl.SSLContext, bytes, tuple[bytes | None, bytes | None]]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authorities = load_authorities(context, self.ca, field="tls_ca")
        if self.certificate is None or self.key is None:
            return context, authorities, (None, None)
        return context, authorities, load_pair(context, self.certificate, self.key)


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a learner cannot be reached.

    Attributes:
        hopeless: no waiting helps; somebody must change something on this side or the other.
    """

    reason: str
    hopeless: bool


def find_obstacle(address: str, tls: TLS | None) -> Obstacle | None:
    """Returns what is in the way of a connection to `address`, by trying one apart from gRPC; None if nothing is.

    gRPC says of all of it UNAVAILABLE. Takes up to 6 s.
    """
    host, port = split_address(address, field="learner")
    host = host.strip("[]")
    try:
        connection = socket.create_connection((host, port), _PATIENCE_SECONDS)
    except socket.gaierror as error:
        return Obstacle(reason=f"the name {host} does not resolve ({error.strerror})", hopeless=False)
    except ConnectionRefusedError:
        return Obstacle(reason=f"nothing listens on port {port} of {host}: is the learner up?", hopeless=False)
    except OSError as error:
        return Obstacle(reason=f"no way to {host}, port {port} ({error}): is a firewall between?", hopeless=False)
    with connection:
        reason = _refuses_clear(connection) if tls is None else _refuses_tls(connection, host, tls)
    return None if reason is None else Obstacle(reason=reason, hopeless=True)


def _refuses_clear(connection: socket.socket) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except OSError:  # ssl.SSLError is one
        return None
    return "the learner speaks TLS: give --tls-ca"


def _refuses_tls(connection: socket.socket, host: str, tls: TLS) -> str | None:
    context = tls.context()
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            if wrapped.recv(1):
                return None
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, host, tls)
    except ssl.SSLEOFError:  # it died in mid-handshake
        return None
    except ssl.SSLError as error:
        return f"the learner does not speak TLS: start it with --tls-cert and --tls-key, or leave out --tls-ca ({error.reason})"
    except OSError:
        return None
    # A gRPC server that does not trust our certificate hangs up after its own half of the handshake, without a word.
    shown = "came none: give --tls-cert and --tls-key" if tls.certificate is None else f"came {tls.certificate}"
    return f"the learner wants a certificate of its own authority, {shown}"


def _distrust(error: ssl.SSLCertVerificationError, host: str, tls: TLS) -> str:
    match error.verify_code:
        case code if code in (_EXPIRED, _NOT_YET_VALID):
            what = "is not valid today: issue a new one"
        case code if code in (_WRONG_NAME, _WRONG_IP):
            what = f"is for another name than {host}: issue one for it, or call the learner by the name that it is for"
        case _:
            what = f"is not from an authority in {tls.ca}"
    return f"the learner's certificate {what} ({error.verify_message})"
