"""An actor's connection to a learner: one channel, and calls that are made again until they are answered.

`grpc.RpcError` never leaves this module. What can succeed later is tried again, with backoff, until `close`.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actor_client.backoff import Backoff
from actor_client.figures import ActorFigures
from actor_client.tls import TLS, find_obstacle
from impala.errors import ConfigError, Refused, Unreachable
from impala.wire import MAX_MESSAGE_BYTES
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A learner that is gone without a word is noticed within 20 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # While gRPC waits for an answer to a ping of its own that measures the bandwidth, it sends none to see who is there; it waits a
    # minute unless told otherwise.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A learner that restarted is found again within seconds; gRPC's own ceiling is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Where its name has got another address, which is half a minute by gRPC's own rule.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Straight to the learner, as `find_obstacle` goes: a proxy for browsers, which the environment names, seldom knows the way.
    ("grpc.enable_http_proxy", 0),
)

_JOIN_SECONDS = 15.0
# Long, for a try that ends before all weights are there begins anew, and many actors may share the learner's link. A learner that
# is gone is noticed by keepalive.
_FETCH_SECONDS = 120.0
# Long, for it includes the wait for a place in a full queue.
_SUBMIT_SECONDS = 120.0

_RETRY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_COMPLAIN_EVERY_SECONDS = 10.0
# In what gRPC says where it has no address for a name; its resolvers word it differently.
_UNRESOLVED = re.compile("resolution failed|errors resolving|lookup failed")
# A learner that another one named may never come back; the one that this actor was started with knows the others that do.
_ASTRAY_SECONDS = 30.0
_MEASURE_SECONDS = 5.0


class Closed(Exception):
    """`close` was called while a call was under way; whoever called it knows."""


class Astray(Exception):
    """The learner that another one named does not answer."""


class Connection:
    """Makes an actor's calls to one learner, from any of its threads.

    Attributes:
        address: HOST:PORT.
        accepted: the learner has given this actor something to run. One that did will again, once it is back.

    Args:
        address: HOST:PORT.
        token: sent with every call; whoever gives one in clear has made sure that it stays on this machine.
        tls: whom to trust; None connects in clear.
        reached: called with whether the learner answers, when that changes.
        sent_here: by another learner, to which the actor goes back when this one does not answer.
        give_up_seconds: for how long a learner that does not answer is waited for; 0 for ever.
        figures: where calls are counted.

    Raises:
        ConfigError: a file that `tls` names cannot be read or used.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None,
        tls: TLS | None,
        reached: Callable[[bool], None],
        sent_here: bool,
        give_up_seconds: float,
        figures: ActorFigures,
    ) -> None:
        self.address = address
        self.accepted = False
        # Since when nobody has answered though somebody called, by `time.monotonic`; None while the learner answers. Not since the
        # last answer: an actor may collect for minutes before it calls again.
        self._silent_since: float | None = time.monotonic()
        self._tls = tls
        # Read once: a connection that is made anew must not fail for a file.
        self._credentials = None if tls is None else tls.credentials()
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self._tell_reached = reached
        self._reached = False
        self._reaching = threading.Lock()
        self._sent_here = sent_here
        self._give_up_seconds = give_up_seconds
        self._figures = figures
        self._closed = threading.Event()
        self._connecting = threading.Lock()
        self._connect()

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Cancels what is under way. Safe to call twice, and from any thread."""
        self._closed.set()
        with self._connecting:
            self._channel.close()

    def pause(self, seconds: float) -> bool:
        """Waits for so long, or for `close`; returns whether it was that."""
        return self._closed.wait(seconds)

    # --- single calls, for `call` to make

    def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """Makes the call once."""
        response: pb.JoinResponse = self._stub.Join(request, timeout=_JOIN_SECONDS, metadata=self._metadata)
        return response

    def get_parameters(self, request: pb.GetParametersRequest) -> pb.GetParametersResponse:
        """Makes the call once."""
        response: pb.GetParametersResponse = self._stub.GetParameters(request, timeout=_FETCH_SECONDS, metadata=self._metadata)
        return response

    def submit_trajectory(self, request: pb.SubmitTrajectoryRequest) -> pb.SubmitTrajectoryResponse:
        """Makes the call once."""
        response: pb.SubmitTrajectoryResponse = self._stub.SubmitTrajectory(
            request, timeout=_SUBMIT_SECONDS, metadata=self._metadata
        )
        return response

    def round_trip(self) -> float | None:
        """Returns how many seconds the one call takes that any learner answers at once and to everyone; None where it failed.

        Raises:
            Closed: see `call`.
        """
        began = time.monotonic()
        try:
            self._attempt(lambda: self._health.Check(health_pb2.HealthCheckRequest(), timeout=_MEASURE_SECONDS))
        except grpc.RpcError as error:
            log.debug("round trip not measured: %s", error.code())
            return None
        self._silent_since = None
        return time.monotonic() - began

    # --- calls that are tried again

    def call(self, name: str, attempt: Callable[[], Any], *, mend: Callable[[bool], bool] | None = None) -> Any:
        """Returns the answer of a call, tried again until it has one.

        Args:
            name: of the call, for the log and the figures.
            attempt: makes it once.
            mend: called where the learner answers FAILED_PRECONDITION, with whether that was its answer to the try before, too.
                Where it returns True, another try follows, else None is returned.

        Raises:
            Refused: no waiting would help.
            Closed: `close` was called meanwhile.
            Astray: the actor was sent here, and nobody answers.
            Unreachable: nobody has answered for `give_up_seconds`.
        """
        backoff, complain_at, called_at, mended, again = Backoff(), 0.0, time.monotonic(), False, False
        while True:
            began = time.monotonic()
            try:
                answer = self._attempt(attempt)
                self._note_reached(reached=True)
                self._silent_since = None
                self._figures.note_call(name, time.monotonic() - began)
                return answer
            except grpc.RpcError as error:
                if self._closed.is_set():
                    raise Closed from error
                status = error.code()
                self._figures.note_call(name, time.monotonic() - began, status.name)
                if status not in _RETRY:
                    self._silent_since = None
                if mend is not None and status == grpc.StatusCode.FAILED_PRECONDITION:
                    log.info("joining again: %s", error.details())
                    if not mend(again):
                        return None
                    if not mended:  # it is back: how long that took is no reason to wait as long once more
                        backoff.reset()
                    mended = again = True
                elif status not in _RETRY:
                    self._refuse(name, error)
                else:
                    again = False
                    # A place in line that took too long says nothing of a learner that is well.
                    if not (name == "SubmitTrajectory" and status == grpc.StatusCode.DEADLINE_EXCEEDED):
                        self._note_reached(reached=False)
                        self._check_silence(error)
                    if time.monotonic() >= complain_at:
                        self._complain(name, error, time.monotonic() - called_at)
                        complain_at = time.monotonic() + _COMPLAIN_EVERY_SECONDS
            if self.pause(backoff.next_delay()):
                raise Closed

    def _attempt(self, attempt: Callable[[], Any]) -> Any:
        if self._closed.is_set():
            raise Closed
        try:
            return attempt()
        except ValueError as error:  # what a channel that was closed meanwhile raises
            if self._closed.is_set():
                raise Closed from error
            raise

    def _check_silence(self, error: grpc.RpcError) -> None:
        """Raises Astray or Unreachable where the learner has been silent for too long."""
        now = time.monotonic()
        since = self._silent_since or now  # read once: another thread may be answered meanwhile
        self._silent_since, silent = since, now - since
        said = f"no answer from {self.address}: {error.code().name}: {error.details()}"
        if self._sent_here and silent > _ASTRAY_SECONDS:
            raise Astray(said) from error
        if 0.0 < self._give_up_seconds < silent:
            raise Unreachable(f"{said}; given up after {silent:.0f} s") from error

    def _note_reached(self, *, reached: bool) -> None:
        # What was told last must be what was found last, whichever threads found it.
        with self._reaching:
            if reached != self._reached:
                self._reached = reached
                self._tell_reached(reached)

    def _complain(self, name: str, error: grpc.RpcError, waited: float) -> None:
        """Says why there is no answer; raises Refused where waiting for one is in vain."""
        try:
            obstacle = find_obstacle(self.address, self._tls)
        except ConfigError:  # a file that was read when this began is gone, or half replaced; the connection has no need of it
            obstacle = None
        # A learner that was reached before will be again, once whoever changed something there has seen it.
        if obstacle is not None and obstacle.hopeless and not self.accepted:
            raise Refused(f"{name}: {self.address}: {obstacle.reason}") from error
        reason = f"{error.code().name}: {error.details()}" if obstacle is None else obstacle.reason
        log.warning("no answer from %s for %.0f s: %s", self.address, waited, reason)
        if obstacle is None and _UNRESOLVED.search(error.details() or ""):
            # The name resolves by now, and gRPC, which asks ever more seldom, up to every two minutes, has not noticed.
            self._connect()

    def _refuse(self, name: str, error: grpc.RpcError) -> NoReturn:
        raise Refused(f"{name} refused by {self.address}: {error.code().name}: {error.details()}") from error

    def _connect(self) -> None:
        """Takes up a connection, in place of an earlier one, on which calls that are under way go on."""
        with self._connecting:
            # A stub that is made of a channel that was closed ends the process (grpc/grpc pull request 43455).
            if not self._closed.is_set():
                self._channel = _channel(self.address, self._credentials)
                self._stub = pb_grpc.LearnerStub(self._channel)
                self._health: Any = health_pb2_grpc.HealthStub(self._channel)


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_OPTIONS)
