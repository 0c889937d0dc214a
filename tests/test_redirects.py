"""Actors that learners send to one another: asked or unasked, with nothing lost, and back where nobody answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from actor_client import connection
from actor_client.client import LearnerClient, Redirect
from actor_client.config import ActorConfig
from actor_client.connection import Astray
from actor_client.run import ActorProcess
from impala.errors import ConfigError, Refused
from impala.wire import Assignment
from learner_server.balance import Balance, Door
from tests.service import Service, free_port, running_service, wait_until
from tests.test_client import STEPS, client_of_a_learner_that_is_gone, in_thread, new_client, steps_recorded, submit


def doors(actors: dict[int, int]) -> list[Door]:
    """Returns learners by their ports, with so many actors each."""
    return [Door(host="", port=port, local_port=port, machine=0, actors=count) for port, count in actors.items()]


def sends_to(port: int) -> Balance:
    """Returns what sends actors to a learner at `port`, which has two fewer than this one."""
    balance = Balance()
    balance.update(doors({1: 2, port: 0}))
    return balance


@contextmanager
def joined(service: Service) -> Iterator[LearnerClient]:
    """Yields a client that takes part, having joined as one that was sent there."""
    with new_client(service.address) as client:
        client._stays = True
        assignment = client.join(0)
        assert isinstance(assignment, Assignment)
        client.start(assignment)
        yield client


def test_an_actor_that_joins_where_there_are_more_is_sent_to_where_there_are_fewer() -> None:
    with running_service(balance=sends_to(5001)) as service, new_client(service.address) as client:
        # `tester` takes part here already.
        assert client.join(0) == Redirect("127.0.0.1:5001")
        assert [actor.actor_id for actor in service.actors.snapshot()] == ["tester"]


def test_an_actor_that_was_sent_to_a_learner_stays_there() -> None:
    with running_service(balance=sends_to(5001)) as service, joined(service) as client:
        assert submit(client)
        wait_until(lambda: steps_recorded(service) == STEPS)


def test_an_actor_that_is_sent_away_leaves_nothing_behind() -> None:
    balance = sends_to(5001)
    balance.send_one_away()  # whose turn it is not
    with running_service(balance=balance, capacity=10**9) as service, joined(service) as client:
        for _ in range(5):
            assert submit(client)
        assert client.redirect is None
        balance._sent.clear()
        balance.update(
            [Door(host="", port=port, local_port=port, machine=0, actors=actors) for port, actors in ((1, 9), (5001, 0))]
        )
        sent = 5
        while submit(client):
            sent += 1
        assert client.redirect == Redirect("127.0.0.1:5001")
        client.finish()
        assert service.queue.account().received == sent * STEPS
        assert service.actors.taking_part() == 1  # `tester`


def test_an_actor_that_is_sent_away_waits_for_its_answers_first() -> None:
    balance = Balance()
    with running_service(balance=balance, capacity=3) as service, joined(service) as client:
        for _ in range(3):  # one has a place, two are in line
            assert submit(client)
        wait_until(lambda: service.queue.account().waiting == 3 * STEPS)
        balance.update(
            [Door(host="", port=port, local_port=port, machine=0, actors=actors) for port, actors in ((1, 9), (5001, 0))]
        )
        service.queue.take_batch(3, 60.0)
        wait_until(lambda: client.redirect is not None)
        with in_thread(client.finish) as outcome:
            # It cannot return, so this wait never makes the test fail; it lets a client that does not wait be seen.
            threading.Event().wait(0.3)
            assert outcome == []
            service.queue.take_batch(3, 60.0)
        assert outcome == [None]
        assert steps_recorded(service) == 3 * STEPS


def test_an_actor_told_to_ask_goes_on_where_it_may_stay() -> None:
    balance = Balance()
    balance.update(doors({1: 5, 5001: 3}))
    with running_service(balance=balance, capacity=10**9) as service, joined(service) as client:
        # By the time it asks, there are no more here than there.
        for _ in range(5):
            assert submit(client)
        wait_until(lambda: steps_recorded(service) == 5 * STEPS)
        assert (client.redirect, client.reassigned) == (None, False)
        (actor,) = [actor for actor in service.actors.snapshot() if actor.actor_id == "actor"]
        assert actor.joins == 2


def test_what_is_under_way_when_a_learner_restarts_is_its_own() -> None:
    with client_of_a_learner_that_is_gone() as (client, port):
        assert submit(client)
        with running_service(port=port, balance=sends_to(5001)) as second:
            # Here, though this learner sends whoever joins away; it may do so once the unroll was answered.
            wait_until(lambda: steps_recorded(second) == STEPS)


def test_an_actor_goes_back_when_nobody_answers_where_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ASTRAY_SECONDS", 0.0)
    client = LearnerClient(f"127.0.0.1:{free_port()}", actor_id="actor", incarnation=1, sent_here=True)
    with pytest.raises(Astray, match=r"no answer from 127\.0\.0\.1"):
        client.join(0)
    client.close()


def test_an_actor_that_was_not_sent_waits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connection, "_ASTRAY_SECONDS", 0.0)
    with new_client(f"127.0.0.1:{free_port()}") as client:
        thread = threading.Thread(target=_expecting(Exception, lambda: client.join(0)), daemon=True)
        thread.start()
        wait_until(lambda: "no answer from" in caplog.text)
        assert thread.is_alive()
        client.close()
        thread.join(30.0)


def _expecting(error: type[Exception], work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(error):
            work()

    return run


@contextmanager
def actor_process(address: str) -> Iterator[threading.Thread]:
    process = ActorProcess(ActorConfig(learner=address), actor_id="actor", incarnation=1, host="here")
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    yield thread
    process.stop()
    thread.join(30.0)
    assert not thread.is_alive()


def test_an_actor_process_acts_where_it_is_sent() -> None:
    with running_service(capacity=10**9) as there:
        port = int(there.address.rpartition(":")[2])
        with running_service(balance=sends_to(port)) as here, actor_process(here.address) as thread:
            wait_until(lambda: steps_recorded(there) > 0)
            assert steps_recorded(here) == 0
            there.queue.close(run_over=True)
            thread.join(30.0)
            assert not thread.is_alive()


def test_an_actor_process_that_finds_nobody_where_it_was_sent_comes_back_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the learner would send it there again, and again: a port that no firewall lets through."""
    monkeypatch.setattr(connection, "_ASTRAY_SECONDS", 0.0)
    with running_service(balance=sends_to(free_port()), capacity=10**9) as here, actor_process(here.address):
        wait_until(lambda: steps_recorded(here) > 0)


def test_an_actor_process_that_is_refused_where_it_was_sent_comes_back_and_stays() -> None:
    with running_service() as there:
        # A later life of the same actor, so that this one is turned away.
        there.join("actor", incarnation=2**62)
        balance = sends_to(int(there.address.rpartition(":")[2]))
        with running_service(balance=balance, capacity=10**9) as here, actor_process(here.address):
            wait_until(lambda: steps_recorded(here) > 0)


def test_an_actor_process_that_is_refused_where_it_was_started_ends() -> None:
    with running_service() as service:
        service.join("actor", incarnation=2**62)
        process = ActorProcess(ActorConfig(learner=service.address), actor_id="actor", incarnation=1, host="here")
        with pytest.raises(Refused, match="incarnation"):
            process.run()


@pytest.mark.parametrize("address", ["nonsense", "elsewhere.example:5001"])
def test_an_actor_process_does_not_go_where_it_may_not(address: str) -> None:
    config = ActorConfig(learner="127.0.0.1:5000", token_file=__file__)  # type: ignore[arg-type]
    process = ActorProcess(config, actor_id="actor", incarnation=1, host="here")
    assert process._next(Redirect(address)) == (config, True)
    assert process._next(Redirect("127.0.0.1:5001")) == (config.at("127.0.0.1:5001"), False)
    assert process._next(None) == (config, False)


def test_an_actor_that_came_back_to_stay_is_not_asked_to_go_again() -> None:
    balance = sends_to(5001)
    with running_service(balance=balance, capacity=10**9) as service, joined(service) as client:
        client._stays_for_good = True
        for _ in range(5):
            assert submit(client)
        wait_until(lambda: steps_recorded(service) == 5 * STEPS)
        assert client.redirect is None


def test_a_run_that_is_over_sends_nobody_elsewhere() -> None:
    with running_service(balance=sends_to(5001)) as service, new_client(service.address) as client:
        service.server.call(service.servicer.end_run)
        assert isinstance(client.join(0), Assignment)


def test_an_actor_that_hears_the_end_of_the_run_while_it_is_sent_away_ends() -> None:
    with running_service(capacity=10**9) as service:
        process = ActorProcess(ActorConfig(learner=service.address), actor_id="actor", incarnation=1, host="here")
        with new_client(service.address) as client:
            service.server.call(service.servicer.end_run)
            client._redirect = Redirect("127.0.0.1:5001")
            client._run_over.set()
            assert process._take_part(client)


def test_a_token_is_not_sent_to_another_machine_in_clear() -> None:
    config = ActorConfig(learner="127.0.0.1:5000", token_file=__file__)  # type: ignore[arg-type]
    assert config.at("127.0.0.1:5001").learner == "127.0.0.1:5001"
    with pytest.raises(ConfigError, match=r"token_file: would be sent in clear to elsewhere\.example:5001"):
        config.at("elsewhere.example:5001")


def test_an_address_that_is_none_is_not_followed() -> None:
    with pytest.raises(ConfigError, match="learner: expected HOST:PORT, came 'nonsense'"):
        ActorConfig(learner="127.0.0.1:5000").at("nonsense")
