"""The gRPC server: an event loop in a thread of its own, so that no number of waiting actors costs a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from impala.addresses import split_address
from impala.errors import ConfigError
from impala.wire import MAX_MESSAGE_BYTES
from learner_server.intake import Intake, messages_at_once
from learner_server.malformed import RefuseMalformed
from learner_server.messages import Messages
from learner_server.security import TokenCheck
from learner_server.servicer import LearnerServicer
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Learner"].full_name

_REACH_127_0_0_1 = frozenset({"127.0.0.1", "localhost", "0.0.0.0", "[::]"})  # noqa: S104  # nosec B104 - compared with, not bound to

_HEALTH_CONNECTIONS = 64
_HEALTH_MESSAGE_BYTES = 4096
# Questions after health are a few bytes, and anybody may ask them: few at once, and not for long, whatever is sent in their place.
_HEALTH_MESSAGES, _HEALTH_SECONDS, _HEALTH_SECONDS_WHEN_FULL = 8, 5.0, 1.0

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A port that another process listens on is an error, not a port to share.
    ("grpc.so_reuseport", 0),
    # A peer that is gone without a word is noticed within half a minute.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # While gRPC waits for an answer to a ping of its own that measures the bandwidth, it sends none to see who is there; it waits a
    # minute unless told otherwise.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Actors ping every 10 s; without this the server answers such zeal with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Tensors are compressed, within bounds, and messages are not: decompressing what nobody asked for is work for nothing.
    ("grpc.per_message_decompression", 0),
    # Calls of one connection; what it makes besides waits at its own end.
    ("grpc.max_concurrent_streams", 256),
    # A connection that does not get as far as HTTP/2, and one that makes no call, are not kept.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


class _Probes(health_pb2_grpc.HealthServicer):
    """Answers probes: `Check` alone, for a `Watch` does not end, and a few of them would keep probes out."""

    def __init__(self, health: health_aio.HealthServicer) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See grpc.health.v1."""
        return await self._health.Check(request, context)


class LearnerServer:
    """Serves a servicer on `address` from a thread named `grpc-loop`, between `start` and `stop`.

    Args:
        token: that every call but health checks must carry; None for none.
        credentials: for TLS; None serves in clear. With TLS, or where `address` is not 127.0.0.1's, a second port,
            `local_port`, serves 127.0.0.1 in clear.
        health_address: where grpc.health.v1's Check is answered besides, alone and in clear: an orchestrator's probes speak no TLS.
        max_message_bytes: that are received; a larger message is refused before it is.
        max_connections: of each port; more are closed at once.
        intake: where messages have a place while they are received.
        health_intake: the same for questions after health, for which nobody needs a token.
    """

    def __init__(
        self,
        servicer: LearnerServicer,
        address: str,
        *,
        token: str | None = None,
        credentials: grpc.ServerCredentials | None = None,
        health_address: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_connections: int = 4096,
        intake: Intake | None = None,
        health_intake: Intake | None = None,
    ) -> None:
        self._servicer = servicer
        self._address = address
        self._health_address = health_address
        self._token = token
        self._credentials = credentials
        self._limits = (
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_allowed_incoming_connections", max_connections),
        )
        self._intake = intake or Intake(messages_at_once(max_message_bytes))
        self._health_intake = health_intake or _health_intake()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="grpc-loop", daemon=True)
        self._started: Future[int] = Future()
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self._health = health_aio.HealthServicer()
        self.port = 0
        self.local_port = 0
        self.health_port = 0

    def start(self) -> int:
        """Returns the port once it accepts calls.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._thread.start()
        try:
            return self._started.result()
        except BaseException:
            self._thread.join()
            raise

    def stop(self, grace_seconds: float) -> None:
        """Lets open calls end for up to `grace_seconds`, then closes every connection and joins the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(grace_seconds), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def busy_seconds(self) -> float:
        """Returns how long the event loop's thread has run on a processor so far; only while it runs."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def call(self, function: Callable[[], None]) -> None:
        """Runs `function` on the event loop and returns when it has run."""

        async def run() -> None:
            function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._started.set_result(self._loop.run_until_complete(self._serve()))
        except BaseException as error:  # handed to the thread that waits in `start`
            self._started.set_exception(error)
        else:
            self._loop.run_forever()
        self._loop.close()

    async def _serve(self) -> int:
        messages = Messages(SERVICE_NAME, self._servicer.refused.update, self._servicer.count_bytes, self._intake)
        # Messages reads its calls by itself, and RefuseMalformed leaves those alone.
        interceptors: list[grpc.aio.ServerInterceptor] = [RefuseMalformed(self._health_intake), messages]
        if self._token is not None:
            interceptors.insert(0, TokenCheck(self._token, self._servicer.refused.update))
        self._server = grpc.aio.server(options=(*_OPTIONS, *self._limits), interceptors=interceptors)
        pb_grpc.add_LearnerServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME), self._server)
        self.port = self.local_port = self._listen(self._address, self._credentials)
        if self._credentials is not None or split_address(self._address, field="listen")[0] not in _REACH_127_0_0_1:
            # For this machine's own actors, which have no need of a certificate, and always call 127.0.0.1.
            self.local_port = self._listen("127.0.0.1:0", None)
        if self._health_address is not None:
            self._health_server = self._listen_for_probes(self._health_address)
            await self._health_server.start()
        await self._server.start()
        for service in ("", SERVICE_NAME):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return self.port

    def _listen_for_probes(self, address: str) -> grpc.aio.Server:
        # On the same loop: a learner whose loop stands still does not say that it serves.
        limits = (
            ("grpc.max_receive_message_length", _HEALTH_MESSAGE_BYTES),
            ("grpc.max_allowed_incoming_connections", _HEALTH_CONNECTIONS),
        )
        options = (*_OPTIONS, *limits)
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=16, interceptors=[RefuseMalformed(_health_intake())])
        health_pb2_grpc.add_HealthServicer_to_server(_Probes(self._health), server)
        try:
            self.health_port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"health: cannot listen on {address}: {error}") from error
        return server

    def _listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        assert self._server is not None
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            what = "listen" if credentials is None else "listen, tls_cert or tls_key"
            raise ConfigError(f"{what}: cannot listen on {address}: {error}") from error

    async def _stop(self, grace_seconds: float) -> None:
        assert self._server is not None
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
        if self._health_server is not None:
            await self._health_server.stop(None)
        # Unrolls still in line, of calls that have just been cut off: they leave it.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _health_intake() -> Intake:
    return Intake(_HEALTH_MESSAGES, seconds=_HEALTH_SECONDS, seconds_when_full=_HEALTH_SECONDS_WHEN_FULL)
