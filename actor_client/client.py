"""The wire seen from an actor: join, fetch weights and submit unrolls, in turn or in the background with several under way at once.

What goes through the wire is made and read here; how a call gets through is `actor_client.connection`'s.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from actor_client.call_times import CallTimes
from actor_client.connection import Closed, Connection
from actor_client.figures import ActorFigures
from actor_client.recording import Draft, Recording
from actor_client.tls import TLS
from actor_client.window import Window
from impala.unroll import ActorTimes, Episode, Unroll
from impala.wire import (
    PROTOCOL_VERSION,
    Assignment,
    Compressor,
    decode_assignment,
    decode_parameters,
    encode_episodes,
    encode_times,
    encode_trace,
    encode_unroll,
)
from protos import impala_pb2 as pb

log = logging.getLogger(__name__)

# Round trips are measured a few times at once, and then now and then: a route may change.
_FIRST_MEASUREMENTS, _FIRST_PAUSE_SECONDS, _PAUSE_SECONDS = 5, 0.2, 30.0


@dataclass(frozen=True)
class Redirect:
    """`Join`'s answer of a learner that has less use for this actor than the one at `address`, HOST:PORT."""

    address: str


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One version of the weights: the network's state dict and its number."""

    version: int
    tensors: dict[str, Tensor]


class LearnerClient:
    """What one actor does at a learner: it joins, fetches weights and submits unrolls.

    Where one unroll at a time is under way, `submit` returns with its answer, and `next_parameters` with the newest weights: the
    calls are made by whoever asks, for every thread that takes part costs a wake-up, and those add up to milliseconds. Else threads
    named `fetch` and `submit-N` make them, from `start` to `close`, and an error in one of those is raised by the next call of
    `submit` or `next_parameters`.

    Attributes:
        waited_seconds: that `submit` and `next_parameters` have waited so far for answers, places and weights.
        call_times: how long answered calls took.
        recording: whether the learner records.

    Args:
        address: HOST:PORT.
        actor_id, incarnation: see the .proto.
        host: for the learner to display.
        token: sent with every call; whoever gives one in clear has made sure that it stays on this machine.
        tls: whom to trust; None connects in clear.
        reached: called with whether the learner answers, when that changes, from any of the client's threads and `join`'s.
        sent_here: by another learner, to which this actor goes back when this one does not answer.
        stays: goes to no other learner.
        give_up_seconds: for how long a learner that does not answer is waited for; 0 for ever.
        figures: where calls are counted.

    Raises:
        ConfigError: a file that `tls` names cannot be read or used.
    """

    def __init__(
        self,
        address: str,
        *,
        actor_id: str,
        incarnation: int,
        host: str = "",
        token: str | None = None,
        tls: TLS | None = None,
        reached: Callable[[bool], None] = lambda _: None,
        sent_here: bool = False,
        stays: bool = False,
        give_up_seconds: float = 0.0,
        figures: ActorFigures | None = None,
    ) -> None:
        self.address = address
        self.waited_seconds = 0.0
        self.call_times = CallTimes()
        self.recording = Recording()
        self._figures = figures or ActorFigures()
        self._connection = Connection(
            address,
            token=token,
            tls=tls,
            reached=reached,
            sent_here=sent_here,
            give_up_seconds=give_up_seconds,
            figures=self._figures,
        )
        self._actor_id = actor_id
        self._incarnation = incarnation
        self._host = host
        self._environments = 0
        # The first Join of an actor that was sent here is answered here; later it may be sent on.
        self._stays, self._stays_for_good = stays or sent_here, stays
        self._redirect: Redirect | None = None
        self._run_over = threading.Event()
        self._reassigned = threading.Event()
        self._failure: Exception | None = None
        self._assignment: Assignment | None = None
        self._compressor: Compressor | None = None
        self._joining = threading.Lock()
        # Assignments that the learner has given so far.
        self._joins = 0
        self._changed = threading.Condition()
        self._parameters: Parameters | None = None
        self._newest_version = 1
        self._sequence = 0
        self._senders = 0
        self._requests: queue.Queue[tuple[pb.SubmitTrajectoryRequest, float] | None] = queue.Queue()
        self._window = Window(1, most_on_the_way=0)
        self._threads: list[threading.Thread] = []

    def join(self, environments: int) -> Assignment | Redirect:
        """Returns what to run, or where to go for it, waiting for a learner that is not up yet.

        Raises:
            Refused: the learner will never have this actor.
            Closed: `close` was called meanwhile.
            Astray: this actor was sent here, and nobody answers.
            Unreachable: nobody has answered for `give_up_seconds`.
        """
        self._environments = environments
        return self._join(stay=self._stays)

    def _join(self, *, stay: bool) -> Assignment | Redirect:
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            actor_id=self._actor_id,
            incarnation=self._incarnation,
            host=self._host,
            environments=self._environments,
            called=self.address,
            stay=stay,
            encodings=[pb.ENCODING_ZSTD],
        )
        response = self._connection.call("Join", lambda: self._connection.join(request))
        if response.redirect and not stay:
            self._redirect = Redirect(response.redirect)
            return self._redirect
        assignment = decode_assignment(response)
        self.recording.end()
        self._joins += 1
        return assignment

    def start(self, assignment: Assignment) -> None:
        """Starts fetching weights and sending unrolls for an assignment."""
        self._assignment = assignment
        self._connection.accepted = True
        self._compressor = Compressor() if assignment.compresses else None
        self._window = Window(assignment.max_in_flight, most_on_the_way=assignment.max_on_the_way)
        if not self._window.waits_for_answers:
            self._start_thread("fetch", self._fetch_forever)
            self._start_thread("measure", self._measure_forever)

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    @property
    def run_over(self) -> bool:
        """The learner said that the run has ended."""
        return self._run_over.is_set()

    @property
    def reassigned(self) -> bool:
        """A learner that restarted has something else to run: close, and join anew."""
        return self._reassigned.is_set()

    @property
    def joined(self) -> bool:
        """An assignment was taken up here."""
        return self._assignment is not None

    @property
    def redirect(self) -> Redirect | None:
        """Where the learner has sent this actor: `finish`, and join there."""
        return self._redirect

    def next_parameters(self) -> Parameters | None:
        """Returns the weights to collect the next unroll with, which is then for `submit`; None where there is to be no next one.

        Waits while as many unrolls are under way as the learner allows, and as the distance to it takes: one that is collected
        early only grows old. With one at a time it also waits for the version that the last answer named; with more, only for a
        first version: latency is hidden.

        Raises:
            Refused: the learner refuses this actor.
            Unreachable: see `join`.
        """
        with self._waiting():
            self._window.enter()
            if self._window.waits_for_answers:
                while not (self._has_parameters() or self._leaves()):
                    self._guarded(self._fetch_newer)
            with self._changed:
                self._changed.wait_for(lambda: self._has_parameters() or self._leaves())
        self._raise_failure()
        return None if self._leaves() else self._parameters

    def submit(
        self,
        unroll: Unroll[np.ndarray],
        episodes: list[Episode],
        first_step_at: float,
        times: ActorTimes | None = None,
        draft: Draft | None = None,
    ) -> bool:
        """Sends an unroll; waits for the answer only where one at a time is under way. The unroll is copied before it returns.

        Args:
            first_step_at: when its first step was taken, by `time.monotonic`.
            times: for the learner to display.
            draft: of its way, where the learner records.

        Returns:
            False once the run is over or reassigned, or the client closed.

        Raises:
            Refused: the learner refuses this actor or its unrolls.
            Unreachable: see `join`.
        """
        assert self._assignment is not None, "start comes before submit"
        self._sequence += 1
        request = pb.SubmitTrajectoryRequest(
            actor_id=self._actor_id,
            incarnation=self._incarnation,
            sequence=self._sequence,
            spec_digest=self._assignment.spec_digest,
            unroll=encode_unroll(unroll, self._compressor),
            episodes=encode_episodes(episodes),
            times=None if times is None else encode_times(times),
        )
        trace = None if draft is None else self.recording.finish(draft)
        if trace is not None:
            request.trace.CopyFrom(encode_trace(trace))
        self._raise_failure()
        if self._must_stop():
            return False
        self._window.note_collection(time.monotonic() - first_step_at)
        if self._window.waits_for_answers:
            with self._waiting():
                self._guarded(lambda: self._submit_one(request, first_step_at))
            self._window.leave()
            self._raise_failure()
            return not self._must_stop()
        self._requests.put((request, first_step_at))
        # One for each unroll that may be under way; the window may have grown.
        if self._senders < self._window.size:
            self._start_thread(f"submit-{self._senders}", self._submit_forever)
            self._senders += 1
        return True

    def finish(self) -> None:
        """Waits until the unrolls under way were answered, and closes.

        Raises:
            Refused: the learner refuses one of them.
            Astray, Unreachable: see `join`.
        """
        for _ in range(self._senders):
            self._requests.put(None)
        for thread in self._threads:
            if thread.name.startswith("submit-"):
                thread.join()
        self.close()
        self._raise_failure()

    def close(self) -> None:
        """Cancels what is under way and ends the threads. Safe to call twice, and from a signal handler's thread."""
        self._connection.close()
        for _ in self._threads:
            self._requests.put(None)
        self._wake()
        for thread in list(self._threads):
            thread.join()

    # --- the threads

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited_seconds += time.perf_counter() - began

    def _guarded(self, work: Callable[[], None]) -> None:
        """Does some work, on a thread of ours or on the caller's; keeps its error for `_raise_failure`."""
        try:
            work()
        except Closed:
            pass
        except Exception as error:  # handed to the actor's thread, which raises it
            self._failure = error
        finally:
            self._wake()

    def _wake(self) -> None:
        """Lets everyone who waits see that something changed."""
        with self._changed:
            self._changed.notify_all()
        if self._leaves():
            self._window.open()

    def _fetch_forever(self) -> None:
        while not self._must_stop():
            with self._changed:
                while self._newest_version <= self._known_version and not self._must_stop():
                    self._changed.wait()
            if not self._must_stop():
                self._fetch_newer()

    @property
    def _known_version(self) -> int:
        return 0 if self._parameters is None else self._parameters.version

    def _fetch_newer(self) -> None:
        """Fetches the newest weights if it was told of newer ones than it has."""
        if self._newest_version <= self._known_version:
            return
        request = pb.GetParametersRequest(actor_id=self._actor_id, known_version=self._known_version)
        began = 0.0

        def attempt() -> Any:
            nonlocal began
            began, sent = time.monotonic(), self.recording.clock()
            return self._noted(self._connection.get_parameters(request), sent)

        response = self._call("GetParameters", attempt)
        if response is None or response.not_modified:
            return
        self.call_times.add_fetch(time.monotonic() - began)
        parameters = Parameters(version=response.version, tensors=decode_parameters(response.parameters))
        with self._changed:
            self._parameters = parameters
            self._newest_version = max(self._newest_version, parameters.version)
            self._changed.notify_all()

    def _submit_forever(self) -> None:
        while (item := self._requests.get()) is not None:
            self._submit_one(*item)
            self._window.leave()

    def _measure_forever(self) -> None:
        """Keeps the window informed of the round trip."""
        measurements = 0
        while not self._must_stop():
            seconds = self._connection.round_trip()
            if seconds is not None:
                self._window.note_round_trip(seconds)
            measurements += 1
            self._connection.pause(_FIRST_PAUSE_SECONDS if measurements < _FIRST_MEASUREMENTS else _PAUSE_SECONDS)

    def _submit_one(self, request: pb.SubmitTrajectoryRequest, first_step_at: float) -> None:
        began = 0.0

        def attempt() -> Any:
            nonlocal began
            began, sent = time.monotonic(), self.recording.clock()
            request.age_seconds = began - first_step_at
            if request.HasField("trace"):
                request.trace.sent = sent
            return self._noted(self._connection.submit_trajectory(request), sent)

        response = self._call("SubmitTrajectory", attempt)
        if response is None:
            return
        self.call_times.add_submission(time.monotonic() - began, response.waited_seconds)
        if response.reason == pb.REASON_RUN_OVER:
            self._run_over.set()
        elif response.reason == pb.REASON_STALE:
            version = request.unroll.parameter_version
            log.warning(
                "unroll %d was too old to train on, of version %d", request.sequence, version, extra={"parameter_version": version}
            )
            self._figures.note_stale()
        self._window.note_line(response.waited_seconds)
        if response.join_again and not self._stays_for_good and not self._must_stop():
            self._ask_where_to_be()
        with self._changed:
            self._newest_version = max(self._newest_version, response.parameter_version)
        self._wake()

    def _noted(self, answer: Any, sent: float) -> Any:
        """Returns the answer of a call that was made at `sent`, having noted what it says of a recording."""
        if answer.HasField("recording"):
            said = answer.recording
            came = self.recording.clock()
            self.recording.note(sent=sent, received=said.received, answered=said.answered, came=came, steps=said.steps)
        else:
            self.recording.end()
        return answer

    def _ask_where_to_be(self) -> None:
        with self._joining:
            answer = self._join(stay=False)
        if isinstance(answer, Redirect):
            log.info("sent on to %s", answer.address)

    def _call(self, name: str, attempt: Callable[[], Any]) -> Any:
        """Returns the answer of a call, tried again until it has one, and after another Join where the learner asks for that.

        Returns:
            None where the learner has something else to run.
        """
        joins = 0

        def noting_joins() -> Any:
            nonlocal joins
            joins = self._joins
            return attempt()

        return self._connection.call(name, noting_joins, mend=lambda again: self._rejoin(joins, again=again))

    def _rejoin(self, joins: int, *, again: bool) -> bool:
        """Joins again, one thread at a time; returns whether the assignment is still the same.

        Args:
            joins: that had been made before the call that was refused. Where another thread has joined since, once is enough.
            again: the call was refused in the same way before, and has been made again after a join.
        """
        assert self._assignment is not None
        with self._joining:
            if self._must_stop():
                return False
            if self._joins != joins:
                return True
            if again:
                # Nor would another join help. The learner has an older version of the run than this actor: its disk went back.
                log.warning("the learner takes nothing that this actor has: starting over")
                self._reassigned.set()
                return False
            # To stay: what is under way is this learner's.
            anew, before = self._join(stay=True), self._assignment
            assert isinstance(anew, Assignment)
            # Another run's versions are not this run's, even where their unrolls look the same. Other limits start anew, too.
            if replace(anew, seed=before.seed) == before:
                return True
        log.info("the learner has something else to run now")
        self._reassigned.set()
        return False

    def _has_parameters(self) -> bool:
        if self._parameters is None:
            return False
        return not self._window.waits_for_answers or self._parameters.version >= self._newest_version

    def _must_stop(self) -> bool:
        return self._connection.closed or self._run_over.is_set() or self._reassigned.is_set() or self._failure is not None

    def _leaves(self) -> bool:
        return self._must_stop() or self._redirect is not None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
