"""The network between an actor and its learner fails: resets, silence, answers that are lost. What each side then does."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import actor_client.connection
import learner_server.server
from actor_client.backoff import Backoff
from actor_client.client import LearnerClient
from impala.wire import Assignment
from tests.proxy import Proxy, proxy_to
from tests.samples import make_unroll
from tests.service import Service, running_service, wait_until
from tests.test_client import STEPS, client_of_a_learner_that_is_gone, in_thread, submit


@contextmanager
def started(address: str, actor_id: str = "actor", **arguments: Any) -> Iterator[LearnerClient]:
    """Yields a client that has joined, with its threads running."""
    client = LearnerClient(address, actor_id=actor_id, incarnation=1, **arguments)
    try:
        assignment = client.join(0)
        assert isinstance(assignment, Assignment)
        client.start(assignment)
        yield client
    finally:
        client.close()


@pytest.fixture(params=["measuring bandwidth", "not measuring"])
def notices_soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes both sides look every half second whether the other is there, whether or not gRPC sends pings for its own ends."""
    waits = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    soon = {**dict.fromkeys(waits, 500), "grpc.http2.min_ping_interval_without_data_ms": 50}
    probe = ("grpc.http2.bdp_probe", int(request.param == "measuring bandwidth"))
    for module in (actor_client.connection, learner_server.server):
        options = tuple((name, soon.get(name, value)) for name, value in module._OPTIONS)
        monkeypatch.setattr(module, "_OPTIONS", (*options, probe))


@pytest.fixture
def never_noticed_by_the_actor(monkeypatch: pytest.MonkeyPatch, notices_soon: None) -> None:
    options, never = dict(actor_client.connection._OPTIONS), {"grpc.keepalive_time_ms": 10**9, "grpc.http2.ping_timeout_ms": 10**9}
    monkeypatch.setattr(actor_client.connection, "_OPTIONS", tuple({**options, **never}.items()))


def take(service: Service) -> Any:
    """Returns the oldest unroll, whose place is free then."""
    batch = service.queue.take_batch(3, 60.0)
    assert batch is not None
    return batch


def until_in_line(service: Service, unrolls: int) -> None:
    """Waits until one unroll has the only place and so many more wait for it."""
    wait_until(lambda: service.queue.account().waiting == (1 + unrolls) * STEPS)


def until_it_has_called_again(service: Service, proxy: Proxy, cut: int) -> None:
    """Waits until one more unroll has come since `cut` bytes."""
    wait_until(lambda: service.servicer.bytes_received >= cut + 200)
    assert proxy.accepted > 1


# --- resets


def test_an_unroll_in_line_whose_connection_is_reset_keeps_its_place_and_is_taken_once() -> None:
    first, second, third = (make_unroll(seed=seed) for seed in range(3))
    with (
        running_service(capacity=3, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address) as client,
        started(service.address, "other") as other,
    ):
        assert client.next_parameters()
        assert client.submit(first, [], 0.0)
        assert client.next_parameters()
        with in_thread(lambda: client.submit(second, [], 0.0)) as outcome:
            until_in_line(service, 1)
            with in_thread(lambda: other.next_parameters() and other.submit(third, [], 0.0)) as others:
                until_in_line(service, 2)
                cut = service.servicer.bytes_received
                assert proxy.reset() == 1
                until_it_has_called_again(service, proxy, cut)
                for expected in (first, second, third):
                    assert (take(service).rewards == expected.rewards).all()
        assert (outcome, others) == ([True], [True])
        assert service.queue.account().received == 3 * STEPS


def test_an_unroll_whose_answer_was_lost_is_not_taken_twice() -> None:
    with (
        running_service(capacity=3, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address) as client,
    ):
        assert submit(client)
        with in_thread(lambda: submit(client)) as outcome:
            until_in_line(service, 1)
            proxy.silence(to_target=False)
            take(service)
            wait_until(lambda: service.actors.find("actor", 1).ledger.answer(2) is True)
            proxy.reset()
            proxy.heal()
        assert outcome == [True]
        take(service)
        assert service.queue.account().received == 2 * STEPS
        assert submit(client)


# --- silence


@pytest.mark.parametrize("what", ["in line", "idle"])
def test_an_actor_notices_a_learner_that_is_gone_without_a_word_and_goes_on_when_it_is_back(what: str, notices_soon: None) -> None:
    reached: list[bool] = []
    with (
        running_service(capacity=3, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address, reached=reached.append) as client,
    ):
        assert submit(client)
        if what == "idle":
            proxy.silence()
            wait_until(lambda: proxy.ended_by_actor >= 1)
            proxy.heal()
            take(service)
            assert submit(client)
        else:
            with in_thread(lambda: submit(client)) as outcome:
                until_in_line(service, 1)
                proxy.silence()
                wait_until(lambda: proxy.ended_by_actor >= 1 and reached == [True, False])
                proxy.heal()
                take(service)
            assert outcome == [True]
            assert reached == [True, False, True]
        assert service.queue.account().received == 2 * STEPS


@pytest.mark.parametrize("what", ["in line", "idle"])
def test_a_learner_lets_go_of_an_actor_that_is_gone_without_a_word(what: str, never_noticed_by_the_actor: None) -> None:
    with (
        running_service(capacity=3, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address) as client,
    ):
        assert submit(client)
        if what == "idle":
            proxy.silence()
            wait_until(lambda: proxy.ended_by_target == 1)
            return
        with in_thread(lambda: submit(client)):
            until_in_line(service, 1)
            proxy.silence()
            wait_until(lambda: proxy.ended_by_target == 1)
            client.close()


def test_an_actor_that_is_gone_while_in_line_holds_nothing_once_the_line_has_moved_on(never_noticed_by_the_actor: None) -> None:
    with (
        running_service(capacity=3, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address) as client,
        started(service.address, "other") as other,
    ):
        assert submit(client)
        with in_thread(lambda: submit(client)):
            until_in_line(service, 1)
            with in_thread(lambda: submit(other)) as outcome:
                until_in_line(service, 2)
                proxy.silence()
                wait_until(lambda: proxy.ended_by_target == 1)
                for _ in range(3):
                    take(service)
            assert outcome == [True]
            gone = next(actor for actor in service.actors.snapshot() if actor.actor_id == "actor")
            assert gone.waiting == 0
            wait_until(lambda: service.servicer._entering == {})
            client.close()


def test_an_actor_that_stood_still_for_long_is_told_that_its_unroll_is_stale_and_goes_on(never_noticed_by_the_actor: None) -> None:
    with (
        running_service(max_policy_lag=0, max_in_flight=1) as service,
        proxy_to(service.address) as proxy,
        started(proxy.address) as client,
    ):
        assert submit(client)
        assert client.next_parameters() is not None
        # Nothing of the unroll comes through, and nobody answers whether the actor is there: what stopping it looks like.
        proxy.silence()
        with in_thread(lambda: client.submit(make_unroll(version=1), [], time.monotonic())) as outcome:
            wait_until(lambda: proxy.ended_by_target == 1)
            service.publish()
            proxy.heal()
        assert outcome == [True]
        account = service.queue.account()
        assert (account.received, account.dropped) == (2 * STEPS, {"stale": STEPS})
        assert submit(client, version=2)
        assert service.queue.account().waiting == 2 * STEPS


def test_an_actor_keeps_no_more_unrolls_than_its_window_while_the_learner_is_away() -> None:
    with running_service(capacity=10**9) as service, proxy_to(service.address) as proxy, started(proxy.address) as client:
        wait_until(lambda: len(client._window._round_trips) == 5)
        assert client.next_parameters() is not None
        client._window.leave()
        proxy.silence()
        submitted: list[int] = []

        def collect() -> None:
            while len(submitted) < 40 and submit(client):
                submitted.append(len(submitted))

        with in_thread(collect):
            wait_until(lambda: len(submitted) >= client._window.size)
            # It cannot go on, so this wait never makes the test fail; it lets a client without bounds be seen.
            threading.Event().wait(0.2)
            assert len(submitted) <= client._window.size
            assert service.queue.account().received == 0
            proxy.heal()
        wait_until(lambda: service.queue.account().received == 40 * STEPS)


# --- many return at once


def test_one_join_is_enough_for_all_calls_that_a_restarted_learner_refused() -> None:
    with running_service() as service, started(service.address) as client:
        refused_at = client._joins
        assert client._rejoin(refused_at, again=False)
        assert client._rejoin(refused_at, again=False)
        assert service.actors.find("actor", 1).joins == 2
        assert client._rejoin(client._joins, again=False)
        assert service.actors.find("actor", 1).joins == 3


def test_a_learner_that_is_back_is_not_made_to_wait_for_as_long_as_it_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Backoff] = []

    class Watched(Backoff):
        def __init__(self) -> None:
            super().__init__(first=0.01, most=0.01)
            self.attempts_at_reset: list[int] = []
            made.append(self)

        def reset(self) -> None:
            self.attempts_at_reset.append(self._attempts)
            super().reset()

    with client_of_a_learner_that_is_gone(at_once=1) as (client, port):
        monkeypatch.setattr(actor_client.connection, "Backoff", Watched)
        with in_thread(lambda: submit(client)) as outcome:
            wait_until(lambda: len(made) > 0 and made[0]._attempts >= 3)
            with running_service(port=port, max_in_flight=1):
                wait_until(lambda: len(outcome) > 0)
    assert len(made[0].attempts_at_reset) == 1
    assert made[0].attempts_at_reset[0] >= 3
