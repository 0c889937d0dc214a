"""The service on a real server: what it refuses, and how; retries, staleness, the end of the run; and who waits for whom."""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from impala.errors import ConfigError
from impala.unroll import ActorTimes
from impala.wire import decode_parameters, encode_tensor
from learner_server.server import LearnerServer
from learner_server.servicer import LearnerServicer
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.samples import make_request, make_unroll
from tests.service import Service, running_service, wait_until

STEPS = 15  # of `make_unroll()`: 5 steps of 3 environments
PATIENCE = 30.0  # seconds that a call may take on the busiest machine

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as running:
        yield running


def call(service: Service, message: Message) -> Any:
    """Returns the answer to a message of any of the three calls."""
    methods = {
        pb.JoinRequest: service.stub.Join,
        pb.GetParametersRequest: service.stub.GetParameters,
        pb.SubmitTrajectoryRequest: service.stub.SubmitTrajectory,
    }
    return methods[type(message)](message, timeout=PATIENCE)


def refusal(attempt: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Returns the status and the text with which a call is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        attempt()
    return refused.value.code(), refused.value.details()


def request(service: Service, sequence: int = 1, **unroll: Any) -> pb.SubmitTrajectoryRequest:
    return make_request(make_unroll(**unroll), digest=service.digest, sequence=sequence)


def submit(service: Service, sequence: int, **unroll: Any) -> pb.SubmitTrajectoryResponse:
    response: pb.SubmitTrajectoryResponse = call(service, request(service, sequence, **unroll))
    return response


def submit_later(service: Service, sequence: int, **unroll: Any) -> Any:
    """Returns the future of a submission that has to wait, once the learner has it in line."""
    before = service.queue.account().waiting
    future = service.stub.SubmitTrajectory.future(request(service, sequence, **unroll), timeout=PATIENCE)
    wait_until(lambda: service.queue.account().waiting > before)
    return future


@contextmanager
def training_goes_on(service: Service) -> Iterator[None]:
    """Takes batches all the while, and afterwards sees a good unroll accepted and trained on."""
    with service.trainer() as taken:
        yield
        assert submit(service, 1_000_000).accepted
        wait_until(lambda: taken == [STEPS])
    account = service.queue.account()
    assert (account.received, account.trained) == (STEPS, STEPS), "what was refused counts nowhere"


# --- what is refused


@dataclass(frozen=True)
class Bad:
    """A message that must be refused, and with what.

    Attributes:
        change: makes a good message bad.
        field: at fault, as a path in the .proto.
        expected, came: what the text says of it, in part.
    """

    change: Callable[[Any], None]
    field: str
    expected: str
    came: str
    status: grpc.StatusCode = INVALID


def put(path: str, value: Any) -> Callable[[Any], None]:
    """Returns a change: the field at `path` of a message becomes `value`."""

    def change(message: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        if isinstance(value, Message):
            getattr(message, last).CopyFrom(value)
        else:
            setattr(message, last, value)

    return change


def array(path: str, values: np.ndarray) -> Callable[[Any], None]:
    return put(f"unroll.{path}", encode_tensor(values))


def floats(shape: tuple[int, ...], first: float = -1.0) -> np.ndarray:
    """Returns an array of -1, but for its first element."""
    values = np.full(shape, -1.0, dtype=np.float32)
    values.flat[0] = first
    return values


def observation(values: np.ndarray) -> Callable[[Any], None]:
    return array("observations.0.tensor", values)


def episodes(*finished: tuple[float, int]) -> Callable[[Any], None]:
    return lambda message: message.episodes.extend(pb.Episode(episode_return=value, length=length) for value, length in finished)


FIRST = "unroll.observations[observation]"
BAD_SUBMISSIONS = {
    "wrong dtype": Bad(array("rewards", np.ones((5, 3))), "unroll.rewards.dtype", "DTYPE_FLOAT32", "DTYPE_FLOAT64"),
    "unknown dtype": Bad(put("unroll.actions.dtype", 77), "unroll.actions.dtype", "DTYPE_INT64", "unknown number 77"),
    "no dtype": Bad(put("unroll.is_first.dtype", 0), "unroll.is_first.dtype", "DTYPE_BOOL", "DTYPE_UNSPECIFIED"),
    "wrong length": Bad(array("rewards", floats((4, 3))), "unroll.rewards.shape", "[5, 3]", "[4, 3]"),
    "wrong width": Bad(array("terminated", np.zeros((5, 2), bool)), "unroll.terminated.shape", "[5, 3]", "[5, 2]"),
    "no last observation": Bad(observation(floats((5, 3, 4))), f"{FIRST}.shape", "[6, 3, 4]", "[5, 3, 4]"),
    "too wide": Bad(array("actions", np.zeros((5, 9), int)), "unroll.actions.shape", "E from 1 to 8", "[5, 9]"),
    "no environment": Bad(array("actions", np.zeros((5, 0), int)), "unroll.actions.shape", "E from 1 to 8", "[5, 0]"),
    "a byte short": Bad(put("unroll.rewards.data", bytes(59)), "unroll.rewards.data", "60 bytes", "59 bytes"),
    "a byte more": Bad(put("unroll.rewards.data", bytes(61)), "unroll.rewards.data", "60 bytes", "61 bytes"),
    "NaN reward": Bad(array("rewards", floats((5, 3), np.nan)), "unroll.rewards.data", "finite values", "1 NaN or infinite"),
    "infinite reward": Bad(array("rewards", floats((5, 3), np.inf)), "unroll.rewards.data", "finite values", "1 NaN"),
    "NaN observation": Bad(observation(floats((6, 3, 4), np.nan)), f"{FIRST}.data", "finite values", "1 NaN"),
    "unknown encoding": Bad(put("unroll.rewards.encoding", 9), "unroll.rewards.encoding", "ENCODING_RAW", "unknown number 9"),
    "no encoding": Bad(put("unroll.actions.encoding", 0), "unroll.actions.encoding", "ENCODING_RAW", "ENCODING_UNSPECIFIED"),
    "log-probability above 0": Bad(
        array("behaviour_log_probs", floats((5, 3), 0.5)), "unroll.behaviour_log_probs.data", "at most 0", "0.5"
    ),
    "infinite log-probability": Bad(
        array("behaviour_log_probs", floats((5, 3), -np.inf)), "unroll.behaviour_log_probs.data", "finite values", "1 NaN"
    ),
    "action out of range": Bad(array("actions", np.full((5, 3), 2)), "unroll.actions.data", "0 to 1", "2 to 2"),
    "negative action": Bad(array("actions", np.full((5, 3), -1)), "unroll.actions.data", "0 to 1", "-1 to -1"),
    "a bool of 2": Bad(put("unroll.is_first.data", b"\2" * 18), "unroll.is_first.data", "bytes of 0 or 1", "2"),
    "no observations": Bad(lambda message: message.unroll.ClearField("observations"), "unroll.observations", "observation", "[]"),
    "unknown state": Bad(lambda message: message.unroll.initial_state.add(name="lstm"), "unroll.initial_state", "[]", "lstm"),
    "no unroll": Bad(lambda message: message.ClearField("unroll"), "unroll", "an unroll", "none"),
    "version 0": Bad(put("unroll.parameter_version", 0), "unroll.parameter_version", "at least 1", "0"),
    "version from the future": Bad(
        put("unroll.parameter_version", 5), "unroll.parameter_version", "at most 1, the newest", "5", PRECONDITION
    ),
    "another environment's spec": Bad(
        put("spec_digest", "0" * 16), "spec_digest", "this run's", "'0000000000000000'", PRECONDITION
    ),
    "an actor that has not joined": Bad(put("actor_id", "stranger"), "actor_id", "has joined", "'stranger'", PRECONDITION),
    "an incarnation that has not joined": Bad(put("incarnation", 2), "incarnation", "1, which joined last", "2", PRECONDITION),
    "sequence 0": Bad(put("sequence", 0), "sequence", "1, 2, 3, ...", "0"),
    "sequence beyond 63 bits": Bad(put("sequence", 2**63), "sequence", "1, 2, 3, ...", str(2**63)),
    "too many episodes": Bad(episodes(*[(1.0, 1)] * 16), "episodes", "at most 15", "16"),
    "an episode of no steps": Bad(episodes((1.0, 1), (1.0, 0)), "episodes[1].length", "at least 1", "0"),
    "an infinite return": Bad(episodes((float("inf"), 1)), "episodes[0].episode_return", "a finite number", "inf"),
    "negative age": Bad(put("age_seconds", -1.0), "age_seconds", "0 or more", "-1.0"),
    "a negative time": Bad(put("times.total", -1.0), "times.total", "0 or more", "-1.0"),
    "more time waited than there was": Bad(put("times.waiting", 1.0), "times.waiting", "0 to the total of 0.0", "1.0"),
    "age that is no number": Bad(put("age_seconds", float("nan")), "age_seconds", "0 or more", "nan"),
}
BAD_JOINS = {
    "another protocol version": Bad(put("protocol_version", 2), "protocol_version", "1", "2", PRECONDITION),
    "too many environments": Bad(put("environments", 9), "environments", "at most 8", "9"),
    "no name": Bad(put("actor_id", ""), "actor_id", "1 to 128 printable characters", "''"),
    "a long name": Bad(put("actor_id", "n" * 129), "actor_id", "1 to 128 printable characters", "'nnn"),
    "a superseded incarnation": Bad(put("incarnation", 0), "incarnation", "1, which joined last", "0", PRECONDITION),
}


def assert_refused(service: Service, message: Message, bad: Bad) -> None:
    status, details = refusal(lambda: call(service, message))
    assert status == bad.status
    assert details.startswith(f"{bad.field}: expected ")
    expected, _, came = details.partition(", came ")
    assert bad.expected in expected
    assert bad.came in came
    counted = bad.field.replace("[observation]", "").replace("[0]", "").replace("[1]", "")
    assert service.servicer.refused.pop(f"{status.name.lower()}:{counted}") == 1
    assert not service.servicer.refused


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in BAD_SUBMISSIONS.items()])
def test_a_bad_submission_is_refused_and_training_goes_on(service: Service, bad: Bad) -> None:
    message = request(service)
    bad.change(message)
    with training_goes_on(service):
        assert_refused(service, message, bad)


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in BAD_JOINS.items()])
def test_a_bad_join_is_refused_and_training_goes_on(service: Service, bad: Bad) -> None:
    message = pb.JoinRequest(protocol_version=1, actor_id="tester", incarnation=1)
    bad.change(message)
    with training_goes_on(service):
        assert_refused(service, message, bad)


def test_a_known_version_from_the_future_is_refused(service: Service) -> None:
    bad = Bad(put("known_version", 2), "known_version", "at most 1, the newest", "2", PRECONDITION)
    with training_goes_on(service):
        assert_refused(service, pb.GetParametersRequest(actor_id="tester", known_version=2), bad)


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        (pb.JoinRequest(), Bad(put("", 0), "protocol_version", "1", "0", PRECONDITION)),
        (pb.SubmitTrajectoryRequest(), Bad(put("", 0), "actor_id", "1 to 128 printable characters", "''")),
    ],
)
def test_an_empty_message_is_refused(service: Service, message: Message, bad: Bad) -> None:
    with training_goes_on(service):
        assert_refused(service, message, bad)


def test_weights_are_not_for_those_who_have_not_joined(service: Service) -> None:
    assert_refused(service, pb.GetParametersRequest(), Bad(put("x", 0), "actor_id", "1 to 128 printable characters", "''"))
    stranger = Bad(put("x", 0), "actor_id", "an actor that has joined", "'stranger'", PRECONDITION)
    assert_refused(service, pb.GetParametersRequest(actor_id="stranger"), stranger)


@contextmanager
def raw(service: Service, method: str) -> Iterator[Callable[[bytes], bytes]]:
    """Yields a call that sends bytes as they are."""
    with grpc.insecure_channel(service.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        multicallable = channel.unary_unary(f"/impala.v1.Learner/{method}")
        yield lambda data: multicallable(data, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("compresses", "known", "answer"),
    [
        (True, [pb.ENCODING_ZSTD], pb.ENCODING_ZSTD),
        (True, [99, pb.ENCODING_ZSTD], pb.ENCODING_ZSTD),
        (True, [], pb.ENCODING_RAW),
        (True, [99], pb.ENCODING_RAW),
        (False, [pb.ENCODING_ZSTD], pb.ENCODING_RAW),
    ],
)
def test_join_names_the_encoding_that_both_sides_have(compresses: bool, known: list[int], answer: int) -> None:
    with running_service(compresses=compresses) as service:
        message = pb.JoinRequest(protocol_version=1, actor_id="tester", incarnation=1, encodings=known)
        assert service.stub.Join(message).encoding == answer


def test_the_bytes_of_every_message_are_counted() -> None:
    with running_service() as service:
        before = service.servicer.bytes_received
        message = pb.GetParametersRequest(actor_id="tester", known_version=1)
        service.stub.GetParameters(message)
        with pytest.raises(grpc.RpcError):
            service.stub.Join(pb.JoinRequest(actor_id="x" * 100))
        assert service.servicer.bytes_received - before == message.ByteSize() + pb.JoinRequest(actor_id="x" * 100).ByteSize()


METHODS = ["Join", "GetParameters", "SubmitTrajectory"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7fshort", b"\x80"], ids=["no field", "cut off", "torn"])
def test_bytes_that_are_no_message_are_refused(service: Service, method: str, data: bytes) -> None:
    with training_goes_on(service), raw(service, method) as send:
        status, details = refusal(lambda: send(data))
        assert status == INVALID
        assert details == f"message: expected the message of /impala.v1.Learner/{method}, came {len(data)} bytes that are not one"
        assert service.servicer.refused == {"invalid_argument:message": 1}


def test_a_message_over_the_limit_is_refused_unread_and_counted(service: Service) -> None:
    with training_goes_on(service), raw(service, "SubmitTrajectory") as send:
        status, details = refusal(lambda: send(bytes(64 * 1024 * 1024 + 1)))
        assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in details
        wait_until(lambda: service.servicer.refused == {"incomplete:message": 1})


def test_calls_that_are_answered_are_not_counted_as_refused(service: Service) -> None:
    service.join()
    call(service, pb.GetParametersRequest(actor_id="tester"))
    submit(service, 1)
    call(service, pb.GetParametersRequest(actor_id="tester", known_version=1))
    assert service.servicer.refused == {}


def test_a_fault_of_our_own_is_internal_and_keeps_its_traceback(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[int, bytes]:
        raise RuntimeError("a secret of the learner")

    with monkeypatch.context() as patched:
        patched.setattr(service.store, "encoded", broken)
        status, details = refusal(lambda: call(service, pb.GetParametersRequest(actor_id="tester")))
    assert status == grpc.StatusCode.INTERNAL
    assert details == "the learner has a fault; its log has the traceback"
    assert service.servicer.refused == {"internal": 1}
    assert call(service, pb.GetParametersRequest(actor_id="tester")).version == 1


def test_whose_call_it_was_is_in_an_event_and_a_field_of_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> tuple[int, bytes]:
        raise RuntimeError

    with caplog.at_level(logging.INFO), monkeypatch.context() as patched:
        service.join()
        patched.setattr(service.store, "encoded", broken)
        refusal(lambda: call(service, pb.GetParametersRequest(actor_id="tester")))
    joined, failed = (record for record in caplog.records if record.name == "learner_server.servicer")
    assert joined.getMessage().startswith("actor tester joined from ")
    assert failed.getMessage() == "GetParameters of actor tester failed"
    assert [vars(record)["actor_id"] for record in (joined, failed)] == ["tester", "tester"]


def test_how_an_actor_spends_its_time_is_noted_once_for_each_unroll_that_says_so(service: Service) -> None:
    message = request(service)
    call(service, message)
    assert service.times == []
    message.sequence += 1
    message.times.CopyFrom(pb.ActorTimes(total=1.0, environment=0.5, inference=0.25, waiting=0.125))
    for _ in range(2):  # the second is a retry
        call(service, message)
    assert service.times == [ActorTimes(total=1.0, environment=0.5, inference=0.25, waiting=0.125)]


# --- who takes part


def test_joining_tells_what_to_run(service: Service) -> None:
    response = service.join("newcomer")
    assert (response.protocol_version, response.run_id, response.spec_digest) == (1, "test-run", service.digest)
    assert (response.environment_id, response.unroll_length, response.environments) == ("CartPole-v1", 5, 3)
    assert response.seed == service.join("tester").seed + 1


def test_a_superseded_incarnation_is_turned_away(service: Service) -> None:
    service.join(incarnation=2)
    bad = Bad(put("", 0), "incarnation", "2, which joined last as 'tester'", "1", PRECONDITION)
    assert_refused(service, request(service), bad)
    newer = request(service)
    newer.incarnation = 2
    assert call(service, newer).accepted


def test_a_new_incarnations_unroll_is_not_mistaken_for_one_that_the_old_one_left_in_line() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        left_behind = submit_later(service, 2)
        service.join(incarnation=2)
        service.queue.take_batch(3, 0.0)
        assert left_behind.result().accepted
        newer = request(service, 2)
        newer.incarnation = 2
        service.queue.take_batch(3, 0.0)
        response = call(service, newer)
        assert (response.accepted, response.duplicate) == (True, False)
        assert service.queue.account().received == 3 * STEPS


# --- weights


def test_an_actor_that_has_the_newest_weights_is_not_sent_them_again(service: Service) -> None:
    service.publish()
    assert call(service, pb.GetParametersRequest(actor_id="tester", known_version=2)) == pb.GetParametersResponse(
        version=2, not_modified=True
    )
    assert service.store.encodings == 0


def test_an_actor_is_sent_the_newest_weights(service: Service) -> None:
    with_new_bias = service.network.state_dict()
    with_new_bias["policy_head.bias"].fill_(0.5)
    service.publish()
    response = call(service, pb.GetParametersRequest(actor_id="tester", known_version=1))
    assert (response.version, response.not_modified) == (2, False)
    served = decode_parameters(response.parameters)
    assert served.keys() == with_new_bias.keys()
    assert (served["policy_head.bias"] == 0.5).all()


def test_weights_are_encoded_once_however_many_actors_ask(service: Service) -> None:
    futures = [service.stub.GetParameters.future(pb.GetParametersRequest(actor_id="tester"), timeout=PATIENCE) for _ in range(20)]
    assert len({future.result().parameters for future in futures}) == 1
    assert service.store.encodings == 1


def test_the_answer_to_an_unroll_names_the_newest_version(service: Service) -> None:
    assert submit(service, 1).parameter_version == 1
    service.publish()
    service.publish()
    assert submit(service, 1).parameter_version == 3
    assert submit(service, 2, version=2).parameter_version == 3


# --- unrolls


def test_an_accepted_unroll_reaches_training_as_it_was_sent(service: Service) -> None:
    unroll = make_unroll(resets=((2, 1),))
    assert call(service, make_request(unroll, digest=service.digest)).accepted
    batch = service.queue.take_batch(3, 0.0)
    assert batch is not None
    assert (batch.length, batch.environments, batch.env_steps) == (5, 3, 14)
    np.testing.assert_array_equal(batch.observations["observation"], unroll.observations["observation"])
    np.testing.assert_array_equal(batch.is_first, unroll.is_first)
    np.testing.assert_array_equal(batch.behaviour_log_probs, unroll.behaviour_log_probs)


def test_the_episodes_of_an_accepted_unroll_are_counted_once(service: Service) -> None:
    message = request(service)
    episodes((3.0, 3), (4.0, 4))(message)
    for _ in range(3):
        call(service, message)
    assert service.episodes.recent_returns == [[3.0, 4.0]]


def test_a_repeated_unroll_is_trained_on_once(service: Service) -> None:
    answers = [submit(service, 1) for _ in range(3)]
    assert [(answer.accepted, answer.duplicate) for answer in answers] == [(True, False), (True, True), (True, True)]
    assert service.queue.account().received == STEPS


def test_the_same_sequence_of_another_actor_is_another_unroll(service: Service) -> None:
    service.join("other")
    submit(service, 1)
    message = request(service)
    message.actor_id = "other"
    assert not call(service, message).duplicate
    assert service.queue.account().received == 2 * STEPS


def count_calls(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that grows with each submission that reaches the learner."""
    calls: list[str] = []
    find = service.actors.find

    def counting(actor_id: str, incarnation: int) -> Any:
        calls.append(actor_id)
        return find(actor_id, incarnation)

    monkeypatch.setattr(service.actors, "find", counting)
    return calls


def test_a_retry_joins_the_first_try_that_still_waits_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        calls = count_calls(service, monkeypatch)
        status, _ = refusal(lambda: service.stub.SubmitTrajectory(request(service, 2), timeout=0.5))
        assert status == grpc.StatusCode.DEADLINE_EXCEEDED
        tried = len(calls)
        retry = service.stub.SubmitTrajectory.future(request(service, 2), timeout=PATIENCE)
        wait_until(lambda: len(calls) > tried and service.queue.account().received >= 2 * STEPS)
        assert service.queue.account().received == 2 * STEPS
        service.queue.take_batch(3, 0.0)
        assert (retry.result().accepted, retry.result().duplicate) == (True, False)
        assert submit(service, 2).duplicate
        account = service.queue.account()
        assert (account.received, account.queued_trajectories) == (2 * STEPS, 3)


def count_tasks(service: Service) -> int:
    """Returns how many tasks the server's event loop has: one a call, and one an unroll in line."""
    counts: list[int] = []
    service.server.call(lambda: counts.append(len(asyncio.all_tasks())))
    return counts[0]


def test_an_unroll_whose_caller_is_gone_keeps_its_place_in_line() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        future = submit_later(service, 2)
        before = count_tasks(service)
        future.cancel()
        wait_until(lambda: count_tasks(service) < before)
        service.queue.take_batch(3, 0.0)
        wait_until(lambda: service.actors.find("tester", 1).ledger.answer(2) is True)
        assert service.queue.account().queued_trajectories == 3


@pytest.mark.parametrize(("lag", "stale"), [(0, False), (2, False), (3, True), (9, True)])
def test_an_unroll_of_weights_that_are_too_old_is_dropped(lag: int, stale: bool) -> None:
    with running_service(max_policy_lag=2) as service:
        for _ in range(9):
            service.publish()
        response = submit(service, 1, version=10 - lag)
        assert (response.accepted, response.reason) == ((False, pb.REASON_STALE) if stale else (True, pb.REASON_UNSPECIFIED))
        assert service.queue.account().dropped == ({"stale": STEPS} if stale else {})
        assert service.queue.account().received == STEPS
        assert response.parameter_version == 10


def test_a_repeated_stale_unroll_is_stale_again_and_counted_once() -> None:
    with running_service(max_policy_lag=0) as service:
        service.publish()
        answers = [submit(service, 1) for _ in range(2)]
        assert [(answer.accepted, answer.reason) for answer in answers] == [(False, pb.REASON_STALE)] * 2
        assert [answer.duplicate for answer in answers] == [False, True]
        assert service.queue.account().dropped == {"stale": STEPS}


# --- the end


def test_the_end_of_the_run_is_told_to_those_in_line_and_to_newcomers() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        waiting = [submit_later(service, sequence) for sequence in (2, 3, 4)]
        service.queue.close(run_over=True)
        answers = [future.result() for future in waiting]
        answers.append(submit(service, 5))
        service.server.call(service.servicer.end_run)
        answers.append(submit(service, 6))
        assert [(answer.accepted, answer.reason) for answer in answers] == [(False, pb.REASON_RUN_OVER)] * 5
        assert service.servicer.refused == {}


def test_after_the_end_an_unroll_is_not_even_read(service: Service) -> None:
    service.server.call(service.servicer.end_run)
    message = request(service)
    message.unroll.ClearField("rewards")
    assert call(service, message).reason == pb.REASON_RUN_OVER
    assert service.queue.account().received == 0


def test_a_learner_that_shuts_down_is_unavailable_to_those_in_line_and_to_newcomers() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        waiting = submit_later(service, 2)
        service.queue.close(run_over=False)
        for attempt in (waiting.result, lambda: submit(service, 3)):
            assert refusal(attempt) == (UNAVAILABLE, "the learner is shutting down")
        assert service.servicer.refused == {"unavailable:QueueClosed": 2}


def test_one_caller_too_many_is_told_to_come_back_later() -> None:
    with running_service(capacity=3, max_line=1) as service:
        submit(service, 1)
        submit_later(service, 2)
        status, details = refusal(lambda: submit(service, 3))
        assert (status, details) == (UNAVAILABLE, "1 unrolls wait for a place already")
        assert service.servicer.refused == {"unavailable:LineTooLong": 1}


# --- the server


def health(service: Service, name: str) -> int:
    with grpc.insecure_channel(service.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
        return int(check.status)


def test_an_unroll_in_line_does_not_keep_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, decode = [], LearnerServicer._decode

    def keep(self: LearnerServicer, request: pb.SubmitTrajectoryRequest) -> Any:
        kept.append(request)
        return decode(self, request)

    monkeypatch.setattr(LearnerServicer, "_decode", keep)
    with running_service(capacity=3) as service:
        submit(service, 1)
        later = submit_later(service, 2)
        wait_until(lambda: service.queue.account().waiting == 2 * STEPS)
        # Of the second message there are the list's reference and that of the question.
        wait_until(lambda: sys.getrefcount(kept[1]) <= 2)
        with service.trainer():
            assert later.result().accepted


def test_an_unroll_counts_as_answered_from_the_instant_when_it_has_a_place() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        later = submit_later(service, 2)
        ledger = service.actors.find("tester", 1).ledger
        wait_until(lambda: service.queue.account().waiting == 2 * STEPS)
        answers = []
        # On the event loop, which has no turn in between.
        service.server.call(
            lambda: answers.extend([ledger.answer(2), service.queue.take_batch(3, 0.0) is not None, ledger.answer(2)])
        )
        assert answers == [None, True, True]
        assert later.result().accepted


def test_64_callers_in_line_starve_nobody_and_cost_no_thread() -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        first = submit_later(service, 2)
        threads = threading.active_count()
        waiting = [service.stub.SubmitTrajectory.future(request(service, 3 + index), timeout=PATIENCE) for index in range(63)]
        wait_until(lambda: service.queue.account().waiting == 65 * STEPS)
        assert call(service, pb.GetParametersRequest(actor_id="tester")).version == 1
        assert service.join("newcomer").environments == 3
        assert health(service, "impala.v1.Learner") == health_pb2.HealthCheckResponse.SERVING
        assert threading.active_count() <= threads
        with service.trainer() as taken:
            assert all(future.result().accepted for future in (first, *waiting))
            wait_until(lambda: len(taken) == 65)


@pytest.mark.parametrize("name", ["", "impala.v1.Learner"])
def test_health_is_serving(service: Service, name: str) -> None:
    assert health(service, name) == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_learner(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=PATIENCE)
    names = [listed.name for listed in answer.list_services_response.service]
    assert {"impala.v1.Learner", "grpc.health.v1.Health"} <= set(names)


def test_a_port_in_use_is_an_error_of_one_line(service: Service) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError, match=f"^listen: cannot listen on {service.address}: .*$") as error:
        LearnerServer(service.servicer, service.address).start()
    assert "\n" not in str(error.value)
    assert threading.active_count() <= before


def loops() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "grpc-loop"]


def test_stopping_ends_the_servers_thread(caplog: pytest.LogCaptureFixture) -> None:
    with running_service(capacity=3) as service:
        submit(service, 1)
        future = submit_later(service, 2)
        assert loops() == ["grpc-loop"]
        service.queue.close(run_over=False)
    assert refusal(future.result)[0] == UNAVAILABLE
    assert loops() == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_unrolls_in_line_leave_it_when_the_server_stops_before_the_queue_is_closed() -> None:
    with running_service(capacity=3) as service:
        first = LearnerServer(service.servicer, "127.0.0.1:0")
        with grpc.insecure_channel(f"127.0.0.1:{first.start()}") as channel:
            stub = pb_grpc.LearnerStub(channel)
            assert stub.SubmitTrajectory(request(service, 1), timeout=PATIENCE).accepted
            future = stub.SubmitTrajectory.future(request(service, 2), timeout=PATIENCE)
            wait_until(lambda: service.queue.account().waiting == 2 * STEPS)
            first.stop(0.0)
            assert refusal(future.result)[0] == UNAVAILABLE
        assert service.queue.account().received == STEPS
        assert service.queue.account().waiting == STEPS
