"""What an actor counts, and its own /metrics."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actor_client.client import LearnerClient
from actor_client.config import ActorConfig
from actor_client.figures import ActorFigures
from actor_client.prometheus import metrics_port
from impala.errors import ConfigError
from impala.unroll import ActorTimes
from learner_server.server import LearnerServer
from tests.programs import ENDLESS, Programs
from tests.samples import make_unroll
from tests.service import Service, free_port, running_service, wait_until
from tests.test_prometheus import scrape


@contextmanager
def counted(service: Service, address: str | None = None) -> Iterator[tuple[LearnerClient, ActorFigures]]:
    """Yields a client that has joined, and what it counts."""
    figures = ActorFigures()
    client = LearnerClient(address or service.address, actor_id="a", incarnation=1, reached=figures.note_reached, figures=figures)
    try:
        client.start(client.join(0))
        yield client, figures
    finally:
        client.close()


def calls(figures: ActorFigures) -> dict[str, int]:
    with figures.lock:
        return {method: histogram.count for method, histogram in figures.rpc.items()}


def test_an_unroll_adds_to_all_that_an_actor_counts() -> None:
    figures = ActorFigures()
    for version in (4, 5):
        times = ActorTimes(total=10.0, environment=4.0, inference=2.0, waiting=1.5, sending=9.0, starved=5.0)
        figures.note_unroll(100, 3, version, times)
    assert (figures.env_steps, figures.unrolls, figures.episodes, figures.version) == (200, 2, 6, 5)
    assert figures.seconds == {"environment": 8.0, "inference": 4.0, "waiting": 3.0, "other": 5.0}
    assert (figures.unroll_seconds.count, figures.unroll_seconds.sum) == (2, 20.0)


def test_only_a_learner_that_was_lost_is_reconnected_to() -> None:
    figures = ActorFigures()
    # Not yet up; up; another client of the same process, which finds it up; lost; back.
    for reached, reconnects in ((False, 0), (True, 0), (True, 0), (False, 0), (False, 0), (True, 1)):
        figures.note_reached(reached)
        assert (figures.reached, figures.reconnects) == (reached, reconnects)


def test_calls_are_counted_by_method_and_those_that_failed_by_status_too() -> None:
    with running_service(max_in_flight=1) as service, counted(service) as (client, figures):
        assert client.next_parameters() is not None
        assert client.submit(make_unroll(), [], first_step_at=0.0)
        assert calls(figures) == {"Join": 1, "GetParameters": 1, "SubmitTrajectory": 1}
        assert all(histogram.sum > 0.0 for histogram in figures.rpc.values())
        assert not figures.failed_calls


def test_a_learner_that_is_lost_and_found_again_is_seen_in_the_figures() -> None:
    with running_service() as service:
        first = LearnerServer(service.servicer, "127.0.0.1:0")
        port = first.start()
        with counted(service, f"127.0.0.1:{port}") as (client, figures):
            first.stop(0.0)
            client._newest_version = 10**6  # so that it asks for weights, again and again
            client._wake()
            wait_until(lambda: figures.failed_calls["GetParameters", "UNAVAILABLE"] > 0)
            wait_until(lambda: not figures.reached)
            second = LearnerServer(service.servicer, f"127.0.0.1:{port}")
            second.start()
            wait_until(lambda: figures.reconnects == 1)
            client.close()
            second.stop(0.0)


def test_unrolls_that_are_too_old_are_counted() -> None:
    with running_service(max_in_flight=1, max_policy_lag=0) as service, counted(service) as (client, figures):
        service.publish()
        assert client.next_parameters() is not None
        assert client.submit(make_unroll(version=1), [], first_step_at=0.0)
        assert figures.stale_unrolls == 1


def test_an_actor_answers_with_what_it_counted() -> None:
    figures = ActorFigures()
    figures.note_unroll(100, 3, 7, ActorTimes(total=10.0, environment=4.0, inference=2.0, waiting=1.5))
    figures.note_reached(True)
    figures.note_stale()
    figures.note_call("Join", 0.25)
    figures.note_call("Join", 0.25, "UNAVAILABLE")
    with metrics_port("127.0.0.1:0", figures) as port:
        found = scrape(port)
    expected = {
        "impala_actor_env_steps_total": 100.0,
        "impala_actor_unrolls_total": 1.0,
        "impala_actor_episodes_total": 3.0,
        "impala_actor_stale_unrolls_total": 1.0,
        "impala_actor_reconnects_total": 0.0,
        "impala_actor_learner_reached": 1.0,
        "impala_actor_parameter_version": 7.0,
        "impala_actor_seconds_total environment": 4.0,
        "impala_actor_seconds_total other": 2.5,
        "impala_actor_failed_calls_total Join UNAVAILABLE": 1.0,
        "impala_actor_unroll_seconds_sum": 10.0,
        "impala_actor_rpc_seconds_count Join": 2.0,
        "impala_actor_rpc_seconds_sum Join": 0.5,
        "impala_actor_rpc_seconds_bucket 0.3 Join": 2.0,
        "impala_actor_rpc_seconds_bucket 0.1 Join": 0.0,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_an_actors_port_that_is_taken_is_named_and_one_that_was_closed_is_free() -> None:
    with metrics_port("127.0.0.1:0", ActorFigures()) as port:
        address = f"127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"metrics: cannot listen on {address}: "), metrics_port(address, ActorFigures()):
            pass
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_where_an_actor_answers_is_an_address() -> None:
    with pytest.raises(ConfigError, match="metrics: expected HOST:PORT, came '50053'"):
        ActorConfig(learner="a:1", metrics="50053")


@pytest.mark.system
def test_an_actor_program_answers_while_it_acts(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "0", *ENDLESS, "--stop-at-return", "1000")
    number = free_port()
    actor = programs.actor(programs.address(learner), "--metrics", f"127.0.0.1:{number}")
    programs.wait_until(lambda: f"answers Prometheus on port {number}" in programs.text(actor), learner, actor)
    programs.wait_until(lambda: scrape(number)["impala_actor_env_steps_total"] > 0, learner, actor)
    # An unroll is counted when it has been collected, before it has been sent.
    programs.wait_until(lambda: scrape(number)["impala_actor_rpc_seconds_count SubmitTrajectory"] > 0, learner, actor)
    assert scrape(number)["impala_actor_learner_reached"] == 1.0
