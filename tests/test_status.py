"""The status page: what it is told, what it makes of it, and whom its server answers."""

import base64
import http.client
import json
import logging
import math
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from impala.errors import ConfigError
from impala.histogram import Histogram
from learner_server.actor_registry import Actor, ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.security import server_context
from learner_server.status.actor_table import ActorTable
from learner_server.status.distributions import Distributions
from learner_server.status.event_log import EventLog
from learner_server.status.feed import StatusFeed
from learner_server.status.history import History
from learner_server.status.server import StatusServer
from tests.test_tls import Files

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's

FIGURES: dict[str, Any] = {
    "seconds": 1.0,
    "env_steps": 640,
    "parameter_version": 12,
    "queued_trajectories": 16,
    "bytes_received": 1000,
    "bytes_sent": 500,
    "checkpoint_age_seconds": 3.0,
    "mean_return_100": None,
    "limit": "learner",
    "limit_evidence": "actors wait 60% of their time, the learner 2%",
}


# --- The history


def test_a_long_run_is_drawn_in_as_many_points_as_a_short_one() -> None:
    history = History(["value"], most_points=4)
    for second in range(1000):
        history.add({"seconds": float(second), "value": float(second)})
        columns = history.columns()
        assert columns["seconds"][-1] == second
        assert len(columns["seconds"]) == len(columns["value"]) <= 5
    assert columns["seconds"] == sorted(columns["seconds"])
    # Means of stretches of 256 lines; the last is of what there is.
    assert columns["value"][:3] == [127.5, 383.5, 639.5]


def test_what_a_line_does_not_have_is_unknown_and_in_no_mean() -> None:
    history = History(["value"], most_points=2)
    history.add({"seconds": 1.0, "value": None})
    history.add({"seconds": 2.0, "value": 4.0})
    assert history.columns() == {"seconds": [2.0], "value": [4.0]}
    history.add({"seconds": 3.0})
    assert history.columns() == {"seconds": [2.0, 3.0], "value": [4.0, None]}


# --- The actors

WELL = Actor("a", 0, 1, host="here", joins=1, env_steps=1000, parameter_version=95, last_seen=100.0)


def rows(table: ActorTable, now: float, *actors: Actor, version: int = 100) -> list[dict[str, Any]]:
    return table.rows(now, actors, version)


def states(table: ActorTable, now: float, *actors: Actor, version: int = 100) -> list[str]:
    return [row["state"] for row in rows(table, now, *actors, version=version)]


@pytest.fixture
def table() -> ActorTable:
    return ActorTable(max_policy_lag=1000, environments=32)


def test_a_row_says_who_where_how_fast_and_how_old(table: ActorTable) -> None:
    rows(table, 100.0, WELL)
    (row,) = rows(table, 104.0, replace(WELL, env_steps=1800, last_seen=103.5, joins=3, refused=0, environments=8))
    assert row == {
        "actor": "a",
        "host": "here",
        "task": 0,
        "environments": 8,
        "version": 95,
        "lag": 5,
        "steps": 1800,
        "steps_per_second": 200.0,
        "seen_seconds_ago": 0.5,
        "reconnects": 2,
        "rejects": 0,
        "state": "ok",
    }


def test_an_actor_that_did_not_choose_has_the_run_s_number_of_environments(table: ActorTable) -> None:
    assert rows(table, 100.0, WELL)[0]["environments"] == 32


def test_an_actor_is_silent_after_five_seconds_or_four_times_its_longest_pause_lately(table: ActorTable) -> None:
    assert states(table, 104.9, WELL) == ["ok"]
    assert states(table, 105.1, WELL) == ["silent"]
    # One in line at the learner has an answer to come.
    assert states(table, 130.0, replace(WELL, waiting=1)) == ["ok"]
    slow = replace(WELL, pause=30.0)
    assert states(table, 219.9, slow) == ["ok"]
    assert states(table, 220.1, slow) == ["silent"]


def test_an_actor_that_said_good_bye_has_left_and_is_forgotten_after_an_hour(table: ActorTable) -> None:
    gone = replace(WELL, departed=True)
    assert states(table, 200.0, gone) == ["left"]
    assert states(table, 3701.0, gone) == []


def test_one_that_a_restarted_learner_only_remembers_is_not_shown(table: ActorTable) -> None:
    assert states(table, 100.0, replace(WELL, joins=0)) == []


def test_weights_half_as_old_as_may_be_are_late(table: ActorTable) -> None:
    assert states(table, 100.0, WELL, version=594) == ["ok"]
    assert states(table, 100.0, WELL, version=595) == ["late"]
    # It has not sent anything yet.
    assert states(table, 100.0, replace(WELL, parameter_version=0), version=2000) == ["ok"]


def test_refused_messages_are_news_for_a_minute(table: ActorTable) -> None:
    assert states(table, 100.0, replace(WELL, refused=3)) == ["ok"]
    assert states(table, 101.0, replace(WELL, refused=4)) == ["refused"]
    assert states(table, 160.0, replace(WELL, refused=4, last_seen=160.0)) == ["refused"]
    assert states(table, 162.0, replace(WELL, refused=4, last_seen=162.0)) == ["ok"]


def test_an_actor_much_slower_than_most_of_its_task_is_slow(table: ActorTable) -> None:
    def team(seconds: float, slowest: int) -> list[Actor]:
        speeds = [100, 100, 100, slowest]
        return [
            replace(WELL, actor_id=f"a{index}", env_steps=round(speed * seconds), last_seen=100.0 + seconds)
            for index, speed in enumerate(speeds)
        ]

    other = replace(WELL, actor_id="of another task", task=1, env_steps=0, last_seen=102.0)
    rows(table, 100.0, *team(0.0, 10), other)
    assert states(table, 102.0, *team(2.0, 10), other) == ["ok", "ok", "ok", "slow", "ok"]
    fair = ActorTable(1000, 32)
    rows(fair, 100.0, *team(0.0, 30))
    assert states(fair, 102.0, *team(2.0, 30)) == ["ok"] * 4


# --- Distributions

RATIOS = Histogram([1.0, 2.0])


def test_distributions_are_of_the_last_minute() -> None:
    histogram = Histogram([1.0, 2.0])
    histogram.add(0.5)
    distributions = Distributions({"ratio": histogram})
    # What was there before the page was made is not of its time.
    assert distributions.update(0.0) == {"ratio": {"bounds": [1.0, 2.0], "counts": [0, 0, 0]}}
    for second in range(1, 121):
        histogram.add(1.5 if second <= 60 else 5.0)
        counts = distributions.update(float(second))["ratio"]["counts"]
    assert counts == [0, 0, 60]


# --- Events


def test_events_are_numbered_and_the_oldest_go_first() -> None:
    events = EventLog()
    for number in range(1, 301):
        events.add(f"event {number}", at=float(number))
    kept = events.newest()
    assert (kept[0], kept[-1], len(kept)) == (
        {"number": 101, "at": 101.0, "level": "info", "text": "event 101"},
        {"number": 300, "at": 300.0, "level": "info", "text": "event 300"},
        200,
    )


# --- The feed


class Clock:
    """Stands in for `time` in the feed."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("learner_server.status.feed.time", clock)
    return clock


class Registry(ActorRegistry):
    """Whose actors are as a test says."""

    shown: list[Actor]

    def snapshot(self) -> list[Actor]:
        return self.shown


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.shown = [WELL]
    return registry


@pytest.fixture
def feed(registry: Registry, clock: Clock) -> Iterator[StatusFeed]:
    run = {"env": ("CartPole-v1",), "seed": 3, "total_steps": 1000, "queue_capacity": 64}
    histograms = {"ratio": RATIOS}
    feed = StatusFeed(run=run, queue_capacity=64, max_policy_lag=1000, environments=32, actors=registry, histograms=histograms)
    with closing(feed):
        yield feed


def told(feed: StatusFeed) -> list[tuple[str, str]]:
    return [(event["level"], event["text"]) for event in feed.events.newest()]


def test_before_the_first_line_there_is_a_verdict_that_says_so(feed: StatusFeed) -> None:
    status = feed.status()
    assert (status["figures"], status["actors"], status["verdict"]["limit"]) == ({}, [], "nothing yet")


def test_the_figures_are_those_of_the_newest_line_and_what_follows_from_it(feed: StatusFeed, clock: Clock) -> None:
    feed.update(FIGURES)
    clock.now += 2.0
    feed.update({**FIGURES, "bytes_received": 5000, "bytes_sent": 700, "mean_return_100": 7.5})
    status = feed.status()
    assert status["figures"].items() >= {**FIGURES, "bytes_received": 5000, "bytes_sent": 700, "mean_return_100": 7.5}.items()
    assert status["figures"]["queue_fill"] == 0.25
    assert (status["figures"]["bytes_received_per_second"], status["figures"]["bytes_sent_per_second"]) == (2000.0, 100.0)
    assert status["verdict"]["evidence"] == FIGURES["limit_evidence"]
    assert status["run"]["seed"] == 3
    assert [row["actor"] for row in status["actors"]] == ["a"]
    assert feed.history()["mean_return_100"] == [None, 7.5]


def test_what_the_learner_logs_is_an_event_until_the_page_closes(feed: StatusFeed) -> None:
    log = logging.getLogger("learner_server.servicer")
    log.warning("actor %s has %d heads", "x", 2)
    log.debug("not this")
    assert told(feed) == [("warning", "actor x has 2 heads")]
    feed.close()
    log.warning("too late")
    assert len(told(feed)) == 1


def test_checkpoints_losses_returns_and_leave_taking_are_events(feed: StatusFeed, registry: Registry, clock: Clock) -> None:
    feed.update(FIGURES)
    feed.update({**FIGURES, "checkpoint_age_seconds": 3.5})
    feed.update({**FIGURES, "checkpoint_age_seconds": 0.5, "parameter_version": 20})
    clock.now = 107.0
    feed.update(FIGURES)
    feed.update(FIGURES)
    registry.shown = [replace(WELL, last_seen=107.0)]
    feed.update(FIGURES)
    registry.shown = [replace(WELL, last_seen=107.0, departed=True)]
    feed.update(FIGURES)
    # The first figures' is of before.
    checkpoints = [("info", "checkpoint written, of about version 20")]
    actor = [("warning", "actor a has not called for 7 s"), ("info", "actor a is well again"), ("info", "actor a left")]
    assert told(feed) == [*checkpoints, *actor]


# --- The server

Get = Callable[..., tuple[int, dict[str, str], str]]


@contextmanager
def served(
    feed: StatusFeed, address: str = "127.0.0.1:0", *, files: Files | None = None, token: str | None = None
) -> Iterator[Get]:
    context = None if files is None else server_context(*files.pair())
    with closing(StatusServer(address, feed, token=token, context=context)) as server:

        def get(path: str, **headers: str) -> tuple[int, dict[str, str], str]:
            if files is None:
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30.0)
            else:
                trust = ssl.create_default_context(cafile=str(files.ca()))
                connection = http.client.HTTPSConnection("localhost", server.port, timeout=30.0, context=trust)
            with closing(connection):
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read().decode()

        yield get


def test_the_page_and_its_parts_are_served_and_ask_nobody_else(feed: StatusFeed) -> None:
    with served(feed) as get:
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            status, headers, text = get(path)
            assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
            assert headers["Content-Security-Policy"].startswith("default-src 'self';")
            assert "//" not in text.replace("// ", "").replace("http://www.w3.org/2000/svg", "").replace('"data:,"', "")
        assert get("/elsewhere")[0] == 404
        assert get("/../server.py")[0] == 404


def test_numbers_that_are_not_finite_are_null(feed: StatusFeed) -> None:
    feed.update({**FIGURES, "mean_return_100": math.nan, "env_steps": math.inf})
    with served(feed) as get:
        figures = json.loads(get("/status.json")[2])["figures"]
        assert (figures["mean_return_100"], figures["env_steps"], figures["seconds"]) == (None, None, 1.0)
        assert json.loads(get("/history.json")[2])["mean_return_100"] == [None]


def test_on_loopback_without_a_token_only_this_machine_s_own_pages_may_ask(feed: StatusFeed) -> None:
    with served(feed) as get:
        for host in ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "[::1]"):
            assert get("/status.json", Host=host)[0] == 200
        assert get("/status.json", Host="rebound.example:80")[0] == 403
        assert get("/status.json", Host="localhost.example")[0] == 403


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def test_with_a_token_nothing_is_answered_without_it(feed: StatusFeed) -> None:
    wrong = [
        "",
        "Bearer",
        "Bearer wrong",
        basic("wrong"),
        "Basic !",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        "Basic é",
        "Bearer \xff\xfe",
        f"Digest {TOKEN}",
    ]
    with served(feed, token=TOKEN) as get:
        for path in ("/", "/page.js", "/status.json", "/history.json", "/elsewhere"):
            for given in wrong:
                status, headers, text = get(path, **({"Authorization": given} if given else {}))
                assert (status, text) == (401, "authorization: expected the learner's token\n")
                assert headers["WWW-Authenticate"].startswith("Basic ")
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
            assert get("/status.json", Authorization=given)[0] == 200


def test_it_is_served_over_tls_with_the_learner_s_certificate(feed: StatusFeed, tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(feed, files=Files(tmp_path_factory.mktemp("tls")), token=TOKEN) as get:
        assert get("/status.json", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_an_address_that_is_taken_is_a_config_error(feed: StatusFeed) -> None:
    with (
        closing(StatusServer("127.0.0.1:0", feed)) as first,
        pytest.raises(ConfigError, match=rf"^status: cannot listen on 127\.0\.0\.1:{first.port}: "),
    ):
        StatusServer(f"127.0.0.1:{first.port}", feed)


def test_elsewhere_than_on_loopback_it_takes_what_the_service_takes() -> None:
    with pytest.raises(ConfigError, match=r"^status: 0\.0\.0\.0:80 can be reached from other machines"):
        LearnerConfig(env=("CartPole-v1",), status="0.0.0.0:80")
    assert LearnerConfig(env=("CartPole-v1",), status="0.0.0.0:80", insecure=True).status == "0.0.0.0:80"
    assert LearnerConfig(env=("CartPole-v1",), status="[::1]:80").status == "[::1]:80"
    with pytest.raises(ConfigError, match=r"^status: expected HOST:PORT, came 'nowhere'"):
        LearnerConfig(env=("CartPole-v1",), status="nowhere")
