"""An actor process: what it may be told to run on this machine, and that it can be stopped."""

import itertools
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actor_client import run
from actor_client.actor import Collected
from actor_client.call_times import CallTimes
from actor_client.client import LearnerClient, Parameters
from actor_client.config import ActorConfig
from actor_client.figures import ActorFigures
from actor_client.recording import Recording
from actor_client.run import ActorProcess
from impala.config import EnvironmentConfig, NetworkConfig
from impala.environments import Hosting
from impala.errors import ConfigError
from impala.networks import build_network
from impala.unroll import ActorTimes
from impala.wire import Assignment
from tests.samples import SPEC, make_unroll


def make_assignment(**fields: Any) -> Assignment:
    """Returns what a learner tells an actor to run, CartPole unless told otherwise."""
    values = {
        "run_id": "run",
        "spec_digest": "digest",
        "environment": EnvironmentConfig(environment_id="CartPole-v1"),
        "task": 0,
        "network": NetworkConfig(),
        "unroll_spec": SPEC,
        "environments": 2,
        "seed": 0,
        "max_in_flight": 1,
    }
    return Assignment(**{**values, **fields})


def test_environments_are_hosted_as_this_machine_says() -> None:
    config = ActorConfig(learner="127.0.0.1:1", vectorization="async", allow_module=("m", "n.o"))
    assert config.hosting() == Hosting(vectorization="async", allowed_modules=("m", "n.o"))


FOREIGN = {
    "environment": {"environment": EnvironmentConfig(environment_id="foreign:CartPole-v1")},
    "wrapper": {"environment": EnvironmentConfig(environment_id="CartPole-v1", wrappers=(("foreign:Wrapper", {}),))},
    "network": {"network": NetworkConfig(network="foreign:Torso")},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_learner_cannot_have_an_actor_import_what_its_machine_does_not_allow(what: str) -> None:
    with pytest.raises(ConfigError, match="--allow-module foreign"):
        run._build(make_assignment(**FOREIGN[what]), ActorConfig(learner="127.0.0.1:1").hosting())


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_learner_is_given_up_after_a_time_that_there_is(seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"^give_up_seconds: expected 0 or more, came {seconds}$"):
        ActorConfig(learner="127.0.0.1:1", give_up_seconds=seconds)


def test_environments_are_made_as_this_machine_says() -> None:
    wrapped = EnvironmentConfig(environment_id="CartPole-v1", wrappers=(("ClipReward", {}),))
    with pytest.raises(ConfigError, match=r"vectorization: .* cannot take a native form"):
        run._build(make_assignment(environment=wrapped), ActorConfig(learner="127.0.0.1:1", vectorization="native").hosting())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_actors_choose_in_the_precision_that_the_run_asks_for(precision: Any) -> None:
    network = NetworkConfig(acting_precision=precision)
    actor, environment = run._build(make_assignment(network=network), ActorConfig(learner="127.0.0.1:1").hosting())
    try:
        weights = build_network(network, SPEC.environment).state_dict()
        actor.load_parameters(1, weights)
        assert actor._network.policy_head.weight.dtype == getattr(torch, precision)
        assert torch.equal(actor._network.policy_head.weight, weights["policy_head.weight"].to(getattr(torch, precision)))
        unroll = actor.collect().unroll
        assert unroll.behaviour_log_probs.dtype == np.float32
        assert (unroll.behaviour_log_probs < 0.0).all()
    finally:
        environment.close()


def test_a_stop_that_comes_while_the_connection_is_made_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ActorProcess(ActorConfig(learner="127.0.0.1:1"), actor_id="a", incarnation=1, host="here")

    def connect(*args: object, **kwargs: object) -> LearnerClient:
        process.stop()  # finds no client to close yet
        return LearnerClient(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "LearnerClient", connect)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    thread.join(30.0)
    assert not thread.is_alive()


def test_an_incarnation_is_higher_than_the_one_before_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    incarnations = list[int]()

    def connect(*args: Any, incarnation: int, **kwargs: Any) -> LearnerClient:
        incarnations.append(incarnation)
        return LearnerClient(*args, incarnation=incarnation, **kwargs)

    process = ActorProcess(ActorConfig(learner="127.0.0.1:1"), actor_id="a", incarnation=7, host="here")
    monkeypatch.setattr(run, "LearnerClient", connect)
    monkeypatch.setattr(run, "time", SimpleNamespace(time_ns=lambda: 5))
    monkeypatch.setattr(process, "_take_part", lambda _: len(incarnations) == 3)
    process.run()
    assert incarnations == [7, 8, 9]


class Clock:
    """Stands in for `time` in `actor_client.run`."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def test_an_actor_tells_how_it_spent_all_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sent = Clock(), list[ActorTimes]()

    class Client:
        waited_seconds = 1000.0
        call_times = CallTimes()
        recording = Recording()

        def next_parameters(self) -> Parameters | None:
            clock.now += 2.0
            self.waited_seconds += 1.5
            return Parameters(version=len(sent) + 1, tensors={}) if len(sent) < 3 else None

        def submit(self, unroll: object, episodes: object, first_step_at: float, times: ActorTimes, draft: object) -> bool:
            clock.now += 0.5
            self.waited_seconds += 0.25
            self.call_times.add_submission(0.25, line=0.125)
            self.call_times.add_fetch(0.5)
            sent.append(times)
            return True

    class Actor:
        def load_parameters(self, version: int, parameters: object) -> None:
            clock.now += 0.25

        def collect(self, moments: object) -> Collected:
            clock.now += 4.0
            return Collected(unroll=make_unroll(), episodes=[], environment_seconds=2.5, inference_seconds=1.0)

    monkeypatch.setattr(run, "time", clock)
    # Each time that it is asked, the thread has been kept waiting for a core another eighth of a second.
    monkeypatch.setattr(run, "starved_seconds", itertools.count(5.0, 0.125).__next__)
    run._act(Client(), Actor(), ActorFigures())  # type: ignore[arg-type]
    first, *later = sent
    assert first == ActorTimes(total=6.25, environment=2.5, inference=1.0, waiting=1.5, starved=0.125)
    # What sending the one before took is part of it.
    calls = {"line": 0.125, "sending": 0.125, "fetching": 0.5}
    assert later == [ActorTimes(total=6.75, environment=2.5, inference=1.0, waiting=1.75, starved=0.125, **calls)] * 2
