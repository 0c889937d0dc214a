"""The gRPC face of the learner: turns messages into unrolls and errors into status codes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np

from impala.errors import InvalidMessage, Mismatch
from impala.specs import UnrollSpec
from impala.unroll import ActorTimes, Episode, Unroll
from impala.unroll_trace import UnrollTrace
from impala.wire import (
    PROTOCOL_VERSION,
    Assignment,
    decode_episodes,
    decode_times,
    decode_trace,
    decode_unroll,
    encode_assignment,
)
from learner_server.actor_limits import ActorLimits, OverLimit
from learner_server.actor_registry import Actor, ActorRegistry, TooManyActors, check_actor_id
from learner_server.balance import Balance
from learner_server.histograms import LearnerHistograms
from learner_server.lockstep import Lockstep
from learner_server.parameter_store import ParameterStore
from learner_server.recorder import Recorder
from learner_server.unroll_queue import LineTooLong, QueueClosed, UnrollQueue
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

# Of an actor's id, which nobody has checked where a call failed.
_NAMED_CHARACTERS = 140

RequestT = TypeVar("RequestT", pb.JoinRequest, pb.GetParametersRequest, pb.SubmitTrajectoryRequest)
ResponseT = TypeVar("ResponseT")
if TYPE_CHECKING:
    # grpc's classes are generic in its type stubs alone.
    Context = grpc.aio.ServicerContext[Any, Any]

# The one place where errors become status codes; the .proto says what each means to an actor.
_STATUS_OF_ERROR: dict[type[Exception], grpc.StatusCode] = {
    InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    Mismatch: grpc.StatusCode.FAILED_PRECONDITION,
    QueueClosed: grpc.StatusCode.UNAVAILABLE,
    LineTooLong: grpc.StatusCode.UNAVAILABLE,
    OverLimit: grpc.StatusCode.UNAVAILABLE,
    TooManyActors: grpc.StatusCode.UNAVAILABLE,
}


def _answers_errors(
    method: Callable[[LearnerServicer, RequestT, Context], Awaitable[ResponseT]],
) -> Callable[[LearnerServicer, RequestT, Context], Awaitable[ResponseT]]:
    """Ends a call whose method raised one of our errors with its status, and counts it; anything else is our own fault."""

    @wraps(method)
    async def answering(self: LearnerServicer, request: RequestT, context: Context) -> ResponseT:
        call, actor_id, began = method(self, request, context), request.actor_id, time.monotonic()
        del request  # the method may let go of it
        try:
            return await call
        except tuple(_STATUS_OF_ERROR) as error:
            status = _STATUS_OF_ERROR[type(error)]
            # Without indices and names, of which a hostile sender has any number.
            field = re.sub(r"\[.*\]", "", getattr(error, "field", type(error).__name__))
            self.refused[f"{status.name.lower()}:{field}"] += 1
            self._actors.note_refused(actor_id)
            if isinstance(error, OverLimit):
                await asyncio.sleep(self._limits.refusal_seconds)
            await context.abort(status, str(error))
        except grpc.aio.AbortError:
            raise
        except Exception:
            named = actor_id[:_NAMED_CHARACTERS]
            log.exception("%s of actor %s failed", method.__name__, named, extra={"actor_id": named})
            self.refused["internal"] += 1
            await context.abort(grpc.StatusCode.INTERNAL, "the learner has a fault; its log has the traceback")
        finally:
            self._histograms.rpc[method.__name__].add(time.monotonic() - began)
        raise AssertionError("abort raises")

    return answering


@dataclass(frozen=True, kw_only=True)
class _Submission:
    """A submission as it is kept while it waits, without its message, which holds a copy of everything."""

    incarnation: int
    sequence: int
    parameter_version: int
    age_seconds: float
    unroll: Unroll[np.ndarray]
    episodes: list[Episode]
    times: ActorTimes | None
    trace: UnrollTrace | None


class LearnerServicer(pb_grpc.LearnerServicer):
    """Answers actors. Runs on the gRPC event loop alone; what it shares with the training thread is locked where it lives.

    Args:
        assign: returns what an actor that joined is to run, given the number of environments that it asked for, 0 for none.
        spec: what its unrolls must look like.
        spec_digest: what they must carry.
        max_policy_lag: unrolls whose weights are more versions old than this are refused as stale.
        on_unroll: called with each accepted unroll's episodes, age in seconds and task.
        balance: where there are several learners, which of them an actor goes to.
        on_times: called with how an actor spent its time, once for each unroll that it says so with.
        limits: what one actor may ask for at once; None for as much as it likes.
        lockstep: where answers are held back until the unroll was trained on; the queue then has a lane for each actor.
        recorder: follows unrolls; None where nothing is recorded.
        histograms: where messages and the times of calls are counted.
    """

    def __init__(
        self,
        *,
        assign: Callable[[Actor, int], Assignment],
        spec: UnrollSpec,
        spec_digest: str,
        queue: UnrollQueue,
        store: ParameterStore,
        actors: ActorRegistry,
        max_policy_lag: int,
        on_unroll: Callable[[list[Episode], float, int], None],
        balance: Balance | None = None,
        on_times: Callable[[ActorTimes], None] = lambda _: None,
        limits: ActorLimits | None = None,
        lockstep: Lockstep | None = None,
        recorder: Recorder | None = None,
        histograms: LearnerHistograms | None = None,
    ) -> None:
        self._assign = assign
        self._spec = spec
        self._spec_digest = spec_digest
        self._queue = queue
        self._store = store
        self._actors = actors
        self._max_policy_lag = max_policy_lag
        self._on_unroll = on_unroll
        self._balance = balance or Balance()
        self._on_times = on_times
        self._limits = limits or ActorLimits()
        self._lockstep = lockstep
        self._recorder = recorder
        self._histograms = histograms or LearnerHistograms()
        # Unrolls on their way into the queue, by (actor, incarnation, sequence), so that a retry joins the first try.
        self._entering: dict[tuple[str, int, int], asyncio.Task[float]] = {}
        self._run_over = False
        self.refused: Counter[str] = Counter()
        # Of all messages, whatever became of them.
        self.bytes_received = 0
        # Of weights, beside which other answers are nothing.
        self.bytes_sent = 0

    def count_bytes(self, size: int) -> None:
        """Counts a message that came."""
        self.bytes_received += size
        self._histograms.messages.add(size)

    def end_run(self) -> None:
        """From now on every submission is answered with REASON_RUN_OVER, and none is held back."""
        self._run_over = True
        if self._lockstep is not None:
            self._lockstep.end()

    @_answers_errors
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:  # noqa: N802 - the .proto's name
        """See the .proto."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise Mismatch("protocol_version", f"{PROTOCOL_VERSION}", f"{request.protocol_version}")
        if request.environments > self._spec.max_environments:
            raise InvalidMessage("environments", f"at most {self._spec.max_environments}", f"{request.environments}")
        check_actor_id(request.actor_id)
        if not request.stay and not self._run_over:
            elsewhere = self._balance.place(request.called, self._actors.taking_part(but=request.actor_id))
            if elsewhere is not None:
                self._actors.send_away(request.actor_id)
                return pb.JoinResponse(redirect=elsewhere)
        actor = self._actors.join(request.actor_id, request.incarnation, request.host, request.environments)
        await self._limits.pace(actor)
        named = {"actor_id": actor.actor_id}
        log.info("actor %s joined from %s (%s)", actor.actor_id, actor.host or "an unnamed host", context.peer(), extra=named)
        assignment = self._assign(actor, request.environments)
        compresses = assignment.compresses and pb.ENCODING_ZSTD in request.encodings
        return encode_assignment(replace(assignment, compresses=compresses))

    @_answers_errors
    async def GetParameters(  # noqa: N802 - the .proto's name
        self, request: pb.GetParametersRequest, context: Context
    ) -> pb.GetParametersResponse:
        """See the .proto."""
        received = self._recorder_now()
        await self._limits.pace(self._actors.greet(request.actor_id))
        if request.known_version > self._store.version:
            # Of another run, or of this one before its disk went back: not for this learner, which `Join` will tell its actor.
            raise Mismatch("known_version", f"at most {self._store.version}, the newest", f"{request.known_version}")
        if request.known_version == self._store.version:
            return pb.GetParametersResponse(version=request.known_version, not_modified=True, recording=self._recording(received))
        version, parameters = self._store.encoded()
        self.bytes_sent += len(parameters)
        return pb.GetParametersResponse(version=version, parameters=parameters, recording=self._recording(received))

    @_answers_errors
    async def SubmitTrajectory(  # noqa: N802 - the .proto's name
        self, request: pb.SubmitTrajectoryRequest, context: Context
    ) -> pb.SubmitTrajectoryResponse:
        """See the .proto."""
        received = self._recorder_now()
        call = self._submit(request)
        del request  # it may let go of it
        response = await call
        recording = self._recording(received)
        if recording is not None:
            response.recording.CopyFrom(recording)
        return response

    async def _submit(self, request: pb.SubmitTrajectoryRequest) -> pb.SubmitTrajectoryResponse:
        actor = self._actors.find(request.actor_id, request.incarnation)
        await self._limits.pace(actor)
        if request.spec_digest != self._spec_digest:
            raise Mismatch("spec_digest", f"{self._spec_digest}, this run's", repr(request.spec_digest[:40]))
        if not 1 <= request.sequence < 2**63:
            raise InvalidMessage("sequence", "1, 2, 3, ...", f"{request.sequence}")
        answered = actor.ledger.answer(request.sequence)
        if answered is not None:
            await self._hold(actor)
            return self._response(accepted=answered, duplicate=True, reason=pb.REASON_UNSPECIFIED if answered else pb.REASON_STALE)

        key = (request.actor_id, request.incarnation, request.sequence)
        entering = self._entering.get(key)
        if entering is None:
            if self._run_over:
                return self._run_is_over(actor)
            self._limits.check_unrolls(actor)
            began = self._recorder_now()
            submission = self._decode(request)
            newest = self._store.version
            if submission.parameter_version > newest:  # as a known_version that is newer than ours
                raise Mismatch("unroll.parameter_version", f"at most {newest}, the newest", f"{submission.parameter_version}")
            if submission.times is not None:
                self._on_times(submission.times)
            if newest - submission.parameter_version > self._max_policy_lag:
                return self._drop_stale(actor, submission)
            self._follow(actor, submission, began)
            size = sum(array.nbytes for array in submission.unroll.arrays())
            self._limits.enter(actor, size)
            entering = asyncio.create_task(self._enter(actor, submission))
            self._entering[key] = entering
            entering.add_done_callback(lambda task: self._entered(key, task, actor, size))
            del submission
        del request  # the wait may be long, and others wait too
        try:
            # Shielded: when the caller's deadline passes, the unroll keeps its place in line, and the retry finds it there.
            waited = await asyncio.shield(entering)
        except QueueClosed as error:
            if error.run_over:
                return self._run_is_over(actor)
            raise
        await self._hold(actor)
        return self._response(accepted=True, waited_seconds=waited)

    async def _hold(self, actor: Actor) -> None:
        """In lockstep, waits until all that an actor has sent was trained on, so that the answer names the version after that."""
        if self._lockstep is not None:
            with self._actors.waiting(actor):
                await self._lockstep.hold(actor.index)

    async def _enter(self, actor: Actor, submission: _Submission) -> float:
        """Returns the seconds that the unroll waited for a place."""
        came = time.monotonic()

        def record() -> None:
            if self._recorder is not None:
                self._recorder.placed(submission.unroll)
            if self._lockstep is not None:
                self._lockstep.note_place(actor.index)
            self._actors.record(
                actor,
                submission.incarnation,
                submission.sequence,
                accepted=True,
                env_steps=submission.unroll.env_steps,
                parameter_version=submission.parameter_version,
            )

        lane = actor.task if self._lockstep is None else actor.index
        with self._actors.waiting(actor):
            await self._queue.put(submission.unroll, lane, record)
        waited = time.monotonic() - came
        self._histograms.line_wait.add(waited)
        self._limits.credit(actor)
        self._on_unroll(submission.episodes, submission.age_seconds, actor.task)
        return waited

    def _entered(self, key: tuple[str, int, int], task: asyncio.Task[float], actor: Actor, size: int) -> None:
        del self._entering[key]
        self._limits.leave(actor, size)
        # Fetched here, for there may be no caller left to fetch it, and asyncio reports exceptions that nobody fetched.
        if not task.cancelled():
            task.exception()

    def _drop_stale(self, actor: Actor, submission: _Submission) -> pb.SubmitTrajectoryResponse:
        def record() -> None:
            self._actors.record(
                actor, submission.incarnation, submission.sequence, accepted=False, env_steps=0, parameter_version=0
            )

        self._queue.count_dropped("stale", submission.unroll.env_steps, record)
        self._on_unroll(submission.episodes, submission.age_seconds, actor.task)
        return self._response(reason=pb.REASON_STALE)

    def _run_is_over(self, actor: Actor) -> pb.SubmitTrajectoryResponse:
        self._actors.say_farewell(actor)
        return self._response(reason=pb.REASON_RUN_OVER)

    def _decode(self, request: pb.SubmitTrajectoryRequest) -> _Submission:
        if not request.HasField("unroll"):
            raise InvalidMessage("unroll", "an unroll", "none")
        unroll = decode_unroll(request.unroll, self._spec)
        if not 0.0 <= request.age_seconds < float("inf"):
            raise InvalidMessage("age_seconds", "a duration of 0 or more", f"{request.age_seconds}")
        return _Submission(
            incarnation=request.incarnation,
            sequence=request.sequence,
            parameter_version=request.unroll.parameter_version,
            age_seconds=request.age_seconds,
            unroll=unroll,
            episodes=decode_episodes(request.episodes, at_most=unroll.length * unroll.environments),
            times=decode_times(request.times) if request.HasField("times") else None,
            trace=decode_trace(request.trace, unroll_length=unroll.length) if request.HasField("trace") else None,
        )

    def _follow(self, actor: Actor, submission: _Submission, received: float) -> None:
        if self._recorder is not None and self._recorder.on and submission.trace is not None:
            self._recorder.follow(
                submission.unroll,
                actor_id=actor.actor_id,
                incarnation=submission.incarnation,
                sequence=submission.sequence,
                trace=submission.trace,
                received=received,
            )

    def _recorder_now(self) -> float:
        return 0.0 if self._recorder is None else self._recorder.now()

    def _recording(self, received: float) -> pb.Recording | None:
        """Returns what an answer says of the recording, to a call that came at `received`; None where there is none."""
        if self._recorder is None or not self._recorder.on:
            return None
        return pb.Recording(received=received, answered=self._recorder.now(), steps=self._recorder.wants_steps)

    def _response(
        self,
        *,
        accepted: bool = False,
        duplicate: bool = False,
        reason: pb.Reason = pb.REASON_UNSPECIFIED,
        waited_seconds: float = 0.0,
    ) -> pb.SubmitTrajectoryResponse:
        return pb.SubmitTrajectoryResponse(
            accepted=accepted,
            duplicate=duplicate,
            reason=reason,
            parameter_version=self._store.version,
            waited_seconds=waited_seconds,
            join_again=self._balance.send_one_away(),
        )
