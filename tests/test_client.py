"""The actor's client against a real server: joining, weights in the background, unrolls under way, and learners that come back."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
import torch

from actor_client import connection
from actor_client.backoff import Backoff
from actor_client.client import LearnerClient
from actor_client.connection import Closed
from impala.config import NetworkConfig
from impala.errors import ConfigError, Refused, Unreachable
from impala.specs import UnrollSpec
from impala.unroll import Episode, Unroll
from impala.wire import Assignment, decode_unroll
from protos import impala_pb2 as pb
from tests.samples import AGENT, make_unroll
from tests.service import Service, free_port, running_service, wait_until

STEPS = 15  # of `make_unroll()`


@contextmanager
def new_client(address: str, actor_id: str = "actor") -> Iterator[LearnerClient]:
    client = LearnerClient(address, actor_id=actor_id, incarnation=1, host="here")
    try:
        yield client
    finally:
        client.close()


@contextmanager
def started(service: Service, actor_id: str = "actor") -> Iterator[LearnerClient]:
    """Yields a client that has joined, with its threads running."""
    with new_client(service.address, actor_id) as client:
        client.start(client.join(0))
        yield client


def submit(client: LearnerClient, **unroll: Any) -> bool:
    """Acts as an actor does: takes weights, which waits while as many unrolls as allowed are under way, and submits an unroll."""
    return submitted_with(client, **unroll) > 0


def submitted_with(client: LearnerClient, **unroll: Any) -> int:
    """Submits an unroll; returns the version of the weights that it would have been collected with, 0 when told to stop."""
    parameters = client.next_parameters()
    if parameters is None or not client.submit(make_unroll(**unroll), [], first_step_at=0.0):
        return 0
    return parameters.version


def submit_until_told_to_stop(client: LearnerClient, **unroll: Any) -> None:
    """Submits until that is in vain: the third at the latest, for it waits for one of the two before it to be answered."""
    answers = [submit(client, **unroll) for _ in range(3)]
    assert answers[-1] is False


@contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs `work` beside; yields the list that gets what it returns or raises."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="beside", daemon=True)
    thread.start()
    yield outcome
    thread.join(30.0)
    assert not thread.is_alive()


def client_threads() -> list[str]:
    names = sorted(thread.name for thread in threading.enumerate())
    return [name for name in names if name in {"fetch", "measure"} or name.startswith("submit-")]


# --- backoff


def test_delays_double_up_to_a_bound_and_are_drawn_from_the_upper_half() -> None:
    for _ in range(100):
        backoff = Backoff(first=0.1, most=3.0)
        for ceiling in (0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0):
            assert 0.5 * ceiling <= backoff.next_delay() <= ceiling


def test_delays_are_jittered() -> None:
    assert len({Backoff(first=1.0).next_delay() for _ in range(20)}) > 10


def test_delays_start_over_after_a_success() -> None:
    backoff = Backoff(first=0.1, most=3.0)
    for _ in range(6):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() <= 0.1


def test_delays_stay_bounded_after_any_number_of_attempts() -> None:
    backoff = Backoff()
    assert all(backoff.next_delay() <= 3.0 for _ in range(5000))


# --- joining


def test_joining_returns_what_to_run() -> None:
    with running_service() as service, new_client(service.address) as client:
        assignment = client.join(2)
        assert (assignment.run_id, assignment.spec_digest) == ("test-run", service.digest)
        assert (assignment.environment, assignment.task, assignment.network) == (AGENT.environments[0], 0, AGENT.network)
        assert (assignment.environments, assignment.max_in_flight) == (2, 2)
        (_, actor) = service.actors.snapshot()
        assert (actor.actor_id, actor.host, actor.environments) == ("actor", "here", 2)


@pytest.mark.parametrize("compresses", [True, False])
def test_an_actor_compresses_where_its_learner_wants_it(compresses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[pb.Unroll] = []

    def decode(message: pb.Unroll, spec: UnrollSpec) -> Unroll[np.ndarray]:
        came.append(message)
        return decode_unroll(message, spec)

    monkeypatch.setattr("learner_server.servicer.decode_unroll", decode)
    with running_service(compresses=compresses) as service, new_client(service.address) as client:
        assignment = client.join(0)
        assert isinstance(assignment, Assignment)
        client.start(assignment)
        unroll = make_unroll(observations={"observation": np.zeros((6, 3, 4), np.float32)})
        client.submit(unroll, [], time.monotonic())
        wait_until(lambda: len(came) > 0)
    assert (came[0].observations[0].tensor.encoding == pb.ENCODING_ZSTD) is compresses


def test_joining_waits_for_a_learner_that_is_not_up_yet(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with new_client(f"127.0.0.1:{port}") as client, in_thread(lambda: client.join(0)) as outcome:
        wait_until(lambda: "no answer from" in caplog.text or len(outcome) > 0)
        assert outcome == []
        with running_service(port=port):
            wait_until(lambda: len(outcome) > 0)
    assert isinstance(outcome[0], Assignment)


def test_a_proxy_that_the_environment_names_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service() as service:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        with new_client(service.address) as client, in_thread(lambda: client.join(0)) as outcome:
            wait_until(lambda: len(outcome) > 0)
    assert isinstance(outcome[0], Assignment)


class Unanswered(grpc.RpcError):
    """A call that has no answer."""

    def __init__(self, code: grpc.StatusCode, details: str = "as the test has it") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def clock_of(client: LearnerClient, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns the time that the client's connection reads, for the test to set; what it waits for passes at once, a second each."""
    now = [1000.0]
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(connection, "find_obstacle", lambda *_: None)

    def pause(seconds: float) -> bool:
        now[0] += 1.0
        return False

    monkeypatch.setattr(client._connection, "pause", pause)
    return now


UNAVAILABLE, LATE = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("name", "codes", "tries"),
    [
        ("SubmitTrajectory", [UNAVAILABLE] * 99, 7),
        ("SubmitTrajectory", [LATE] * 9 + [UNAVAILABLE] * 90, 16),
        ("GetParameters", [LATE] * 99, 7),
    ],
    ids=["gone", "a line that is too long, then gone", "does not answer"],
)
def test_silence_counts_from_when_somebody_asked_and_a_long_line_is_none(
    name: str, codes: list[grpc.StatusCode], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, told = LearnerClient("127.0.0.1:1", actor_id="actor", incarnation=1, give_up_seconds=5.5), list[tuple[int, bool]]()
    now, calls = clock_of(client, monkeypatch), 0
    client._connection.call(name, lambda: "answered")
    now[0] += 3600.0  # in which the actor collected, and nobody asked
    client._connection._tell_reached = lambda reached: told.append((calls, reached))

    def attempt() -> None:
        nonlocal calls
        calls += 1
        raise Unanswered(codes[calls - 1])

    with pytest.raises(Unreachable, match=r"given up after 6 s$"):
        client._connection.call(name, attempt)
    client.close()
    assert (calls, told) == (tries, [(tries - 6, False)])


def test_a_tls_file_that_is_gone_later_on_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    client = LearnerClient("127.0.0.1:1", actor_id="actor", incarnation=1)
    clock_of(client, monkeypatch)
    monkeypatch.setattr(connection, "find_obstacle", Mock(side_effect=ConfigError("tls_ca: cannot read ca.pem")))
    answers = iter([Unanswered(UNAVAILABLE), None])

    def attempt() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "answered"

    assert client._connection.call("GetParameters", attempt) == "answered"
    client.close()


@pytest.mark.parametrize("joined", [False, True])
def test_a_learner_that_stays_away_is_given_up_where_that_was_asked_for(joined: bool) -> None:
    with running_service(max_in_flight=1) as service:
        client = LearnerClient(service.address, actor_id="actor", incarnation=1, give_up_seconds=0.05)
        if joined:
            client.start(client.join(0))  # type: ignore[arg-type]
            assert client.next_parameters() is not None
    try:
        with pytest.raises(Unreachable, match=rf"^no answer from {service.address}: UNAVAILABLE: .*; given up after \d+ s$"):
            client.submit(make_unroll(), [], first_step_at=0.0) if joined else client.join(0)
    finally:
        client.close()


class NamelessStub:
    """Stands for a connection whose name did not resolve."""

    def Join(self, *_: Any, **__: Any) -> None:
        # What gRPC says of a name while it waits, up to two minutes, to ask for it again.
        said = "errors resolving learner:50051: [field:hostname lookup error:address lookup failed for learner:50051: not found]"
        raise Unanswered(UNAVAILABLE, said)


def test_a_name_that_resolves_again_is_asked_for_at_once() -> None:
    with running_service() as service, new_client(service.address) as client:
        client._connection._stub = NamelessStub()  # type: ignore[assignment]
        with in_thread(lambda: client.join(0)) as outcome:
            wait_until(lambda: len(outcome) > 0)
    assert isinstance(outcome[0], Assignment)


def test_a_call_that_is_under_way_goes_on_when_the_connection_is_made_anew() -> None:
    with running_service(capacity=1, max_in_flight=1) as service, new_client(service.address) as client:
        client.start(client.join(0))  # type: ignore[arg-type]
        with in_thread(lambda: [submit(client), submit(client)]) as outcome:
            wait_until(lambda: service.queue.account().received > STEPS or len(outcome) > 0)
            joins = client._joins
            client._connection._connect()
            gc.collect()
            with service.trainer():
                wait_until(lambda: len(outcome) > 0)
    assert (outcome, client._joins) == ([[True, True]], joins)


def refuse_join(service: Service, client: LearnerClient, _: pytest.MonkeyPatch) -> None:
    service.join("actor", incarnation=2)
    client.join(0)


def refuse_weights(service: Service, client: LearnerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.store, "encoded", lambda: 1 / 0)
    client.start(client.join(0))
    client.next_parameters()


def refuse_unroll(_: Service, client: LearnerClient, __: pytest.MonkeyPatch) -> None:
    client.start(client.join(0))
    submit_until_told_to_stop(client, rewards=make_unroll().rewards * float("nan"))


REFUSED = {
    "Join": (refuse_join, "FAILED_PRECONDITION: incarnation: expected 2"),
    "GetParameters": (refuse_weights, "INTERNAL: the learner has a fault"),
    "SubmitTrajectory": (refuse_unroll, "INVALID_ARGUMENT: unroll.rewards.data: expected finite values"),
}


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("name", list(REFUSED))
def test_a_call_that_is_refused_for_good_surfaces_as_refused(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    provoke, text = REFUSED[name]
    with running_service(max_in_flight=at_once) as service, new_client(service.address) as client:
        with pytest.raises(Refused, match=f"^{name} refused by {service.address}: {text}") as error:
            provoke(service, client, monkeypatch)
        assert not isinstance(error.value, grpc.RpcError)


def test_an_unroll_that_is_refused_ends_waiting_for_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service() as service, new_client(service.address) as client:
        with pytest.raises(Refused, match=r"unroll\.rewards\.data"):
            refuse_unroll(service, client, monkeypatch)
        with pytest.raises(Refused, match=r"unroll\.rewards\.data"):
            client.next_parameters()


# --- weights


def test_the_first_weights_are_fetched_without_an_unroll() -> None:
    with running_service() as service, started(service) as client:
        parameters = client.next_parameters()
        assert parameters is not None
        assert parameters.version == 1
        assert parameters.tensors.keys() == service.network.state_dict().keys()


def test_newer_weights_are_fetched_in_the_background_once_an_answer_names_them() -> None:
    with running_service(capacity=10**9) as service, started(service) as client:
        assert submitted_with(client) == 1
        with torch.no_grad():
            service.network.state_dict()["policy_head.bias"].fill_(0.25)
        service.publish()
        wait_until(lambda: submitted_with(client) == 2)
        parameters = client.next_parameters()
        assert parameters is not None
        assert (parameters.tensors["policy_head.bias"] == 0.25).all()


def test_with_one_unroll_at_a_time_the_next_waits_for_the_weights_that_the_answer_named() -> None:
    with running_service(capacity=10**9, max_in_flight=1) as service, started(service) as client:
        for version in range(1, 20):
            parameters = client.next_parameters()
            assert parameters is not None
            assert parameters.version == version
            service.publish()
            assert client.submit(make_unroll(), [], first_step_at=0.0)
            # Answered already, on this thread.
            assert service.actors.find("actor", 1).ledger.answer(version) is True
        assert client_threads() == []


def test_what_was_waited_for_an_answer_is_counted() -> None:
    with running_service(capacity=3, max_in_flight=1) as service, started(service) as client:
        assert submit(client)
        before = client.waited_seconds
        with in_thread(lambda: submit(client)) as outcome:
            wait_until(lambda: service.queue.account().waiting == 2 * STEPS)
            began = time.perf_counter()
            threading.Event().wait(0.1)
            waited = time.perf_counter() - began
            service.queue.take_batch(3, 60.0)
        assert outcome == [True]
        assert client.waited_seconds - before >= waited


def test_every_client_gets_the_new_weights() -> None:
    with running_service(capacity=10**9) as service, ExitStack() as stack:
        clients = [stack.enter_context(started(service, f"actor-{index}")) for index in range(2)]
        for version in (2, 3, 4):
            service.publish()
            for client in clients:
                wait_until(lambda client=client, version=version: submitted_with(client) == version)  # type: ignore[misc]


# --- distance


def test_the_round_trip_is_measured_by_itself() -> None:
    with running_service() as service, started(service) as client:
        wait_until(lambda: len(client._window._round_trips) == 5)
        assert all(0.0 < seconds < 5.0 for seconds in client._window._round_trips)


def test_a_far_actor_has_more_under_way_than_the_learner_allows() -> None:
    with running_service(capacity=3) as service, started(service) as client:
        wait_until(lambda: len(client._window._round_trips) == 5)
        for _ in range(5):
            client._window.note_round_trip(3600.0)
        # One has a place; all others wait in line, each with a sender of its own.
        for _ in range(1 + 2 + 16):
            assert client.next_parameters() is not None
            assert client.submit(make_unroll(), [], first_step_at=time.monotonic())
        wait_until(lambda: service.queue.account().received == 19 * STEPS)
        assert len([name for name in client_threads() if name.startswith("submit-")]) == 18


# --- unrolls


def test_an_unroll_arrives_with_its_episodes() -> None:
    with running_service() as service, started(service) as client:
        unroll = make_unroll(resets=((3, 1),))
        assert client.next_parameters() is not None
        assert client.submit(unroll, [Episode(episode_return=12.0, length=4)], first_step_at=0.0)
        batch = service.queue.take_batch(3, 60.0)
        assert batch is not None
        assert (batch.rewards == unroll.rewards).all()
        wait_until(lambda: service.episodes.recent_returns == [[12.0]])


def test_an_unroll_is_copied_before_submit_returns() -> None:
    with running_service(capacity=3) as service, started(service) as client:
        for version in (1, 1):  # the first takes the only place, so the second waits
            assert client.next_parameters() is not None
            unroll = make_unroll(version=version, seed=version)
            before = unroll.rewards.copy()
            assert client.submit(unroll, [], first_step_at=0.0)
            unroll.rewards[:] = 77.0
        for _ in range(2):
            batch = service.queue.take_batch(3, 60.0)
            assert batch is not None
            assert (batch.rewards == before).all()


def test_submitting_waits_while_as_many_as_allowed_are_under_way() -> None:
    with running_service(capacity=3) as service, started(service) as client:
        for _ in range(3):  # one has a place, and the two that may be under way are in line
            assert submit(client)
        wait_until(lambda: service.queue.account().waiting == 3 * STEPS)
        with in_thread(lambda: submit(client)) as outcome:
            # It cannot return, so this wait never makes the test fail; it lets a client that does not wait be seen.
            threading.Event().wait(0.3)
            assert outcome == []
            assert service.queue.account().received == 3 * STEPS
            service.queue.take_batch(3, 60.0)
        assert outcome == [True]


@pytest.mark.parametrize(("told", "at_once"), [("in line", 2), ("newcomer", 2), ("newcomer", 1)])
def test_the_end_of_the_run_ends_submitting_with_false(told: str, at_once: int) -> None:
    with running_service(capacity=3, max_in_flight=at_once) as service, started(service) as client:
        if told == "in line":
            for _ in range(3):
                assert submit(client)
            wait_until(lambda: service.queue.account().waiting == 3 * STEPS)
        service.queue.close(run_over=True)
        submit_until_told_to_stop(client)
        assert client.run_over
        assert client.next_parameters() is None
        assert not submit(client)


def test_a_stale_unroll_is_no_reason_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    with running_service(max_policy_lag=0) as service, started(service) as client:
        service.publish()
        assert submit(client, version=1)
        assert submit(client, version=2)
        wait_until(lambda: service.queue.account().queued_trajectories == 3)
        assert service.queue.account().dropped == {"stale": STEPS}
        wait_until(lambda: "unroll 1 was too old to train on" in caplog.text)


# --- closing


def wait_to_join(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    gone.close()
    return lambda: client.join(0)


def wait_for_weights(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    assignment = client.join(0)
    gone.close()
    client.start(assignment)
    return client.next_parameters


def wait_for_a_place(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    client.start(client.join(0))
    for _ in range(3):
        submit(client)
    wait_until(lambda: service.queue.account().waiting == 3 * STEPS)
    return lambda: submit(client)


def wait_for_a_learner_that_is_gone(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    client.start(client.join(0))
    client.next_parameters()
    gone.close()
    client.submit(make_unroll(), [], first_step_at=0.0)
    submit(client)
    return lambda: submit(client)


def wait_for_an_answer(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    client.start(client.join(0))
    assert submit(client)  # takes the only place
    return lambda: submit(client)


def wait_for_an_answer_of_a_learner_that_is_gone(client: LearnerClient, service: Service, gone: ExitStack) -> Callable[[], Any]:
    client.start(client.join(0))
    client.next_parameters()
    gone.close()
    return lambda: client.submit(make_unroll(), [], first_step_at=0.0)


WAITING = [
    (wait_to_join, 2, Closed),
    (wait_for_weights, 2, None),
    (wait_for_weights, 1, None),
    (wait_for_a_place, 2, False),
    (wait_for_an_answer, 1, False),
    (wait_for_a_learner_that_is_gone, 2, False),
    (wait_for_an_answer_of_a_learner_that_is_gone, 1, False),
]


@pytest.mark.parametrize(("wait", "at_once", "expected"), WAITING)
def test_closing_from_another_thread_ends_every_wait(wait: Callable[..., Callable[[], Any]], at_once: int, expected: Any) -> None:
    with ExitStack() as gone:
        service = gone.enter_context(running_service(capacity=3, max_in_flight=at_once))
        client = LearnerClient(service.address, actor_id="actor", incarnation=1)
        with in_thread(wait(client, service, gone)) as outcome:
            # Time to get into the wait; a close that comes before it must end it as well.
            threading.Event().wait(0.2)
            client.close()
        (came,) = outcome
        assert came is expected or type(came) is expected
        assert client_threads() == []


def test_closing_twice_is_as_good_as_once() -> None:
    with running_service() as service, started(service) as client:
        for _ in range(4):
            assert submit(client)
        assert client_threads() == ["fetch", "measure", "submit-0", "submit-1"]
        client.close()
        client.close()
        assert client_threads() == []
        assert not submit(client)


# --- a learner that comes back


def steps_recorded(service: Service) -> int:
    return sum(actor.env_steps for actor in service.actors.snapshot())


@contextmanager
def client_of_a_learner_that_is_gone(at_once: int = 2) -> Iterator[tuple[LearnerClient, int]]:
    """Yields a client whose first unroll was accepted by a learner that is gone by now, and the port where that was."""
    with ExitStack() as gone:
        service = gone.enter_context(running_service(max_in_flight=at_once))
        with started(service) as client:
            assert submitted_with(client) == 1
            wait_until(lambda: service.actors.find("actor", 1).ledger.answer(1) is True)
            gone.close()
            yield client, int(service.address.rpartition(":")[2])


def test_an_unroll_is_accepted_once_by_a_learner_that_restarted() -> None:
    with client_of_a_learner_that_is_gone() as (client, port):
        assert submit(client)
        with running_service(port=port) as second:
            wait_until(lambda: steps_recorded(second) == STEPS)
            assert submit(client)
            wait_until(lambda: steps_recorded(second) == 2 * STEPS)
            (_, actor) = second.actors.snapshot()
            assert (actor.actor_id, actor.joins) == ("actor", 1)
            assert second.queue.account().received == 2 * STEPS
            assert [actor.ledger.answer(sequence) for sequence in (1, 2, 3, 4)] == [None, True, True, None]
            assert not client.reassigned


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("change", ["another spec", "another run", "another task", "other limits"])
def test_a_learner_that_came_back_with_something_else_to_run_ends_the_assignment(change: str, at_once: int) -> None:
    anew: dict[str, Any] = {
        "another spec": {"agent": replace(AGENT, network=NetworkConfig(hidden_sizes=(8,)))},
        "another run": {"run_id": "run-2"},
        "another task": {"task": 1},
        "other limits": {"max_in_flight": 3},
    }
    with ExitStack() as stack:
        client, port = stack.enter_context(client_of_a_learner_that_is_gone(at_once))
        second = stack.enter_context(running_service(port=port, capacity=10**9, **anew[change]))
        wait_until(lambda: not submit(client))
        assert client.reassigned
        assert not client.run_over
        assert client.next_parameters() is None
        # An unroll that was on its way while another joined anew may slip into what its digest does not tell apart.
        assert change != "another spec" or second.queue.account().received == 0


@pytest.mark.parametrize("at_once", [1, 2])
def test_of_a_learner_whose_disk_went_back_an_actor_starts_over(at_once: int, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(running_service(max_in_flight=at_once))
        first.publish()
        with started(first) as client:
            assert submitted_with(client) == 2
            wait_until(lambda: first.actors.find("actor", 1).ledger.answer(1) is True)
            stack.close()
            with running_service(port=int(first.address.rpartition(":")[2]), max_in_flight=at_once, capacity=10**9) as second:
                wait_until(lambda: not submit(client, parameter_version=np.full(3, 2)))
                assert client.reassigned
                assert "the learner takes nothing that this actor has: starting over" in caplog.text
                with new_client(second.address) as anew:
                    anew._incarnation = 2
                    anew.start(anew.join(0))  # type: ignore[arg-type]
                    assert submitted_with(anew) == 1


# A fresh process, for what it must not do is end it.
CLOSED_BEFORE_IT_STARTS = """
from actor_client.client import LearnerClient
from tests.test_actor_process import make_assignment

client = LearnerClient("127.0.0.1:1", actor_id="a", incarnation=1)
client.close()
client.start(make_assignment(max_in_flight=2))
client.close()
print("ended in good order")
"""


def test_a_client_that_is_closed_before_it_starts_ends_in_good_order() -> None:
    command = [sys.executable, "-c", CLOSED_BEFORE_IT_STARTS]
    output = subprocess.run(
        command, cwd=Path(__file__).resolve().parent.parent, check=True, capture_output=True, text=True, timeout=120
    )
    assert output.stdout == "ended in good order\n"
