"""Who may call the learner, and over what: bearer tokens and TLS."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from impala.pem import load_authorities, load_pair

# Probes of an orchestrator carry no token, and learn nothing but that the learner serves.
_OPEN_TO_ALL = "/grpc.health.v1.Health/"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses every call without the right bearer token, but for health checks."""

    def __init__(self, token: str, count: Callable[[list[str]], None]) -> None:
        self._expected = f"Bearer {token}".encode()
        self._count = count

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Passes a call on, or answers it with UNAUTHENTICATED before its message is received."""
        if handler_call_details.method.startswith(_OPEN_TO_ALL) or self._holds_token(handler_call_details):
            return await continuation(handler_call_details)
        self._count(["unauthenticated:authorization"])
        # As of a stream, whatever the call is: the handler then runs before a message is received.
        return grpc.stream_unary_rpc_method_handler(_refuse)

    def _holds_token(self, details: grpc.HandlerCallDetails) -> bool:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        # In constant time: how long a comparison takes must not tell how much of a guess was right.
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected)


async def _refuse(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: expected 'Bearer TOKEN' with the learner's token")


def server_credentials(certificate: Path, key: Path, *, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Returns the credentials of a server that proves itself by a certificate (chain) and its key.

    Args:
        client_ca: the authorities one of which must have issued what callers show: mutual TLS. None asks callers for nothing.

    All are PEM files.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    # Checked before gRPC sees them, which says "Failed to add secure port" of anything.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, private_key = load_pair(context, certificate, key)
    authorities = None if client_ca is None else load_authorities(context, client_ca, field="tls_client_ca")
    return grpc.ssl_server_credentials([(private_key, chain)], authorities, require_client_auth=authorities is not None)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Returns what serves browsers by the same certificate, and asks them for none.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, certificate, key)
    return context
