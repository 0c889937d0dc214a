"""Who may call the learner, and over what: bearer tokens and TLS."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from impala.errors import ConfigError

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
        """Passes a call on, or answers it with UNAUTHENTICATED before its message is parsed."""
        if handler_call_details.method.startswith(_OPEN_TO_ALL) or self._holds_token(handler_call_details):
            return await continuation(handler_call_details)
        self._count(["unauthenticated:authorization"])
        return grpc.unary_unary_rpc_method_handler(_refuse)

    def _holds_token(self, details: grpc.HandlerCallDetails) -> bool:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        # In constant time: how long a comparison takes must not tell how much of a guess was right.
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected)


async def _refuse(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: expected 'Bearer TOKEN' with the learner's token")


def server_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """Returns the credentials of a server that proves itself by a certificate (chain) and its key, both PEM files.

    Raises:
        ConfigError: a file cannot be read.
    """
    return grpc.ssl_server_credentials([(_read("tls_key", key), _read("tls_cert", certificate))])


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from error
