"""What one actor may ask for at once: calls, unrolls that wait, their bytes; and what it is told beyond that."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from actor_client.client import LearnerClient
from learner_server.actor_limits import ActorLimits, OverLimit
from learner_server.actor_registry import Actor, ActorRegistry, TooManyActors
from protos import impala_pb2 as pb
from tests.samples import make_request, make_unroll
from tests.service import Service, running_service, wait_until

STEPS = 15  # of `make_unroll()`
BYTES = sum(array.nbytes for array in make_unroll().arrays())
PATIENCE = 30.0


def limits(**values: Any) -> ActorLimits:
    """Returns limits whose refusals are not held back."""
    return ActorLimits(refusal_seconds=0.0, **values)


class Clock:
    """A clock that goes when it is told to, and for who sleeps by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1024.0  # with rates that are powers of two, times are exact
        self.slept: list[float] = []
        monkeypatch.setattr("learner_server.actor_limits.time.monotonic", lambda: self.now)
        monkeypatch.setattr("learner_server.actor_limits.asyncio.sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patched:
        yield Clock(patched)


def actor() -> Actor:
    return Actor("tester", index=0, incarnation=1)


def call(some: ActorLimits, caller: Actor, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(StopIteration):
            some.pace(caller).send(None)


# --- calls


def test_a_seconds_worth_of_calls_is_answered_at_once(clock: Clock) -> None:
    call(limits(calls_per_second=128), actor(), times=128)
    assert clock.slept == []


def test_calls_beyond_the_rate_wait_for_their_time_and_then_are_refused(clock: Clock) -> None:
    some, caller = limits(calls_per_second=128), actor()
    call(some, caller, times=144)
    assert clock.slept == [index / 128 for index in range(1, 17)]
    with pytest.raises(
        OverLimit, match=r"^calls_per_second: expected at most 128 calls a second of one actor that .*: try again later$"
    ):
        call(some, caller)
    clock.now += 1 / 128
    call(some, caller)


def test_one_actors_calls_are_not_anothers(clock: Clock) -> None:
    some = limits(calls_per_second=128)
    call(some, actor(), times=144)
    call(some, actor(), times=128)
    assert len(clock.slept) == 16


def test_a_pause_is_made_up_for_by_a_seconds_worth_and_no_more(clock: Clock) -> None:
    some, caller = limits(calls_per_second=128), actor()
    call(some, caller, times=128)
    clock.now += 3600.0
    call(some, caller, times=129)
    assert clock.slept == [1 / 128]


def test_an_actor_that_does_its_work_makes_any_number_of_calls(clock: Clock) -> None:
    some, caller = limits(calls_per_second=128), actor()
    for _ in range(1000):
        call(some, caller, times=2)
        some.credit(caller)
    assert clock.slept == []


def test_work_is_no_credit_for_more_than_a_seconds_worth(clock: Clock) -> None:
    some, caller = limits(calls_per_second=128), actor()
    for _ in range(1000):
        some.credit(caller)
    call(some, caller, times=129)
    assert clock.slept == [1 / 128]


def test_an_accepted_unroll_is_credited() -> None:
    with running_service(limits=limits(calls_per_second=1000)) as service:
        caller = service.actors.find("tester", 1)
        caller.calls_due = before = 10.0**6  # so that this second does not matter
        submit_without_pacing(service)
        assert caller.calls_due == before - 2 / 1000


def submit_without_pacing(service: Service) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ActorLimits, "pace", lambda *_: asyncio.sleep(0))
        assert submit(service).accepted


def test_without_a_limit_no_call_waits(clock: Clock) -> None:
    call(ActorLimits(), actor(), times=10_000)
    assert clock.slept == []


def parameters(service: Service) -> Any:
    return service.stub.GetParameters(pb.GetParametersRequest(actor_id="tester", known_version=1), timeout=PATIENCE)


def join(service: Service) -> Any:
    return service.join()


def submit(service: Service) -> Any:
    return service.stub.SubmitTrajectory(make_request(make_unroll(), digest=service.digest), timeout=PATIENCE)


@pytest.mark.parametrize("method", [parameters, join, submit])
def test_every_call_counts_and_what_is_over_is_unavailable_by_name(method: Any) -> None:
    with running_service(limits=limits(calls_per_second=1000)) as service:
        service.actors.find("tester", 1).calls_due = math.inf
        with pytest.raises(grpc.RpcError) as refused:
            method(service)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert refused.value.details().startswith("calls_per_second: expected at most 1000 calls a second of one actor")
        assert service.servicer.refused == {"unavailable:calls_per_second": 1}


def test_a_refusal_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with running_service(limits=ActorLimits(calls_per_second=1000, refusal_seconds=7.5)) as service:
        service.actors.find("tester", 1).calls_due = math.inf
        with monkeypatch.context() as patched:
            patched.setattr("learner_server.servicer.asyncio.sleep", sleep)
            with pytest.raises(grpc.RpcError):
                parameters(service)
        assert slept == [7.5]


# --- unrolls that wait


def submit_later(service: Service, sequence: int, **unroll: Any) -> Any:
    """Returns the future of a submission that has to wait, once the learner has it in line."""
    before = service.queue.account().waiting
    request = make_request(make_unroll(**unroll), digest=service.digest, sequence=sequence)
    future = service.stub.SubmitTrajectory.future(request, timeout=PATIENCE)
    wait_until(lambda: service.queue.account().waiting > before)
    return future


def refusal(service: Service, sequence: int) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        service.stub.SubmitTrajectory(make_request(make_unroll(), digest=service.digest, sequence=sequence), timeout=PATIENCE)
    return refused.value.code(), refused.value.details()


def test_one_actors_unrolls_in_line_are_limited_and_others_come_in() -> None:
    with running_service(capacity=3, limits=limits(unrolls=2)) as service:
        submit(service)
        waiting = [submit_later(service, sequence) for sequence in (2, 3)]
        said = "unrolls_in_line: expected at most 2 unrolls of one actor that wait for a place: try again later"
        assert refusal(service, 4) == (grpc.StatusCode.UNAVAILABLE, said)
        assert service.servicer.refused == {"unavailable:unrolls_in_line": 1}
        service.join("other")
        message = make_request(make_unroll(), digest=service.digest, actor_id="other")
        waiting.append(service.stub.SubmitTrajectory.future(message, timeout=PATIENCE))
        with service.trainer():
            assert all(future.result().accepted for future in waiting)
            submit(service)


def test_an_unroll_that_got_its_place_no_longer_counts() -> None:
    with running_service(capacity=3, limits=limits(unrolls=1)) as service:
        submit(service)
        for sequence in range(2, 6):
            later = submit_later(service, sequence)
            service.queue.take_batch(3, 0.0)
            assert later.result().accepted
        caller = service.actors.find("tester", 1)
        wait_until(lambda: (caller.entering, caller.entering_bytes) == (0, 0))


def test_a_retry_of_an_unroll_in_line_is_not_another_one() -> None:
    with running_service(capacity=3, limits=limits(unrolls=1)) as service:
        submit(service)
        later = submit_later(service, 2)
        request = make_request(make_unroll(), digest=service.digest, sequence=2)
        retry = service.stub.SubmitTrajectory.future(request, timeout=PATIENCE)
        assert refusal(service, 3)[1].startswith("unrolls_in_line")
        with service.trainer():
            assert (later.result().accepted, retry.result().accepted) == (True, True)


def test_the_bytes_of_one_actors_unrolls_in_line_are_limited() -> None:
    with running_service(capacity=3, limits=limits(unroll_bytes=2 * BYTES)) as service:
        submit(service)
        waiting = [submit_later(service, sequence) for sequence in (2, 3)]
        said = f"bytes_in_line: expected at most {2 * BYTES:g} bytes of one actor's unrolls that wait for a place: try again later"
        assert refusal(service, 4) == (grpc.StatusCode.UNAVAILABLE, said)
        with service.trainer():
            assert all(future.result().accepted for future in waiting)


def test_the_bytes_of_all_unrolls_in_line_are_limited() -> None:
    with running_service(capacity=3, limits=limits(all_bytes=BYTES)) as service:
        submit(service)
        waiting = submit_later(service, 2)
        service.join("other")
        message = make_request(make_unroll(), digest=service.digest, actor_id="other")
        with pytest.raises(grpc.RpcError) as refused:
            service.stub.SubmitTrajectory(message, timeout=PATIENCE)
        assert (
            refused.value.details()
            == f"line_bytes: expected at most {BYTES:g} bytes of unrolls that wait for a place: try again later"
        )
        with service.trainer():
            assert waiting.result().accepted


def test_one_unroll_may_wait_however_large_it_is() -> None:
    with running_service(capacity=3, limits=limits(unroll_bytes=1, all_bytes=1)) as service:
        submit(service)
        later = submit_later(service, 2)
        with service.trainer():
            assert later.result().accepted


def test_an_actor_that_is_refused_for_now_comes_back_and_loses_nothing() -> None:
    with running_service(capacity=3, limits=limits(unrolls=1)) as service:
        client = LearnerClient(service.address, actor_id="busy", incarnation=1)
        assignment = client.join(0)
        client.start(assignment)  # type: ignore[arg-type]
        for _ in range(4):
            client.submit(make_unroll(), [], 0.0)
        wait_until(lambda: service.servicer.refused["unavailable:unrolls_in_line"] > 0)
        with service.trainer() as taken:
            client.finish()
            wait_until(lambda: sum(taken) == 4 * STEPS)
        assert service.queue.account().received == 4 * STEPS


# --- names


def test_there_is_no_room_for_ever_more_names() -> None:
    registry = ActorRegistry(most=2)
    for name in ("a", "b"):
        registry.join(name, 1, "", 0)
    with pytest.raises(TooManyActors, match=r"^2 actors are known already: try again later$"):
        registry.join("c", 1, "", 0)
    registry.join("a", 2, "", 0)


def test_who_has_been_silent_for_an_hour_makes_room_unless_it_waits() -> None:
    registry = ActorRegistry(most=2)
    silent, waiting = (registry.join(name, 1, "", 0) for name in ("a", "b"))
    with registry.waiting(waiting):
        silent.last_seen -= 3601.0
        waiting.last_seen -= 3601.0
        registry.join("c", 1, "", 0)
        assert [each.actor_id for each in registry.snapshot()] == ["b", "c"]


def test_a_newcomer_for_whom_there_is_no_room_is_told_to_come_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service() as service:
        monkeypatch.setattr(service.actors, "_most", 1)
        with pytest.raises(grpc.RpcError) as refused:
            service.join("newcomer")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert service.servicer.refused == {"unavailable:TooManyActors": 1}
