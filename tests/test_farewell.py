"""When a run is over, its learner stays until actors have heard of it."""

from types import SimpleNamespace

import pytest

from learner_server import actor_registry, run
from learner_server.actor_registry import ActorRegistry


class Clock:
    """A clock in place of `time`, that sleeping moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        stands_in = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        for module in (actor_registry, run):
            monkeypatch.setattr(module, "time", stands_in)

    def sleep(self, _: float) -> None:
        self.now += 0.5


def farewell_seconds(clock: Clock, registry: ActorRegistry) -> float:
    """Returns for how long a learner with these actors stays when its run is over."""
    service = object.__new__(run._Service)  # of which it needs no more
    service._actors = registry
    began = clock.now
    service._say_farewell()
    return clock.now - began


def calling_every(seconds: float, clock: Clock) -> ActorRegistry:
    """Returns a registry with one actor that has made such pauses."""
    registry = ActorRegistry()
    registry.join("a", 1, "host", 2)
    for _ in range(2):
        clock.now += seconds
        registry.find("a", 1)
    return registry


@pytest.mark.parametrize(("pause", "stays"), [(0.1, 10.0), (5.0, 20.0), (60.0, 120.0)])
def test_it_stays_as_long_as_actors_may_take_to_call_and_no_longer(
    pause: float, stays: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert farewell_seconds(clock, calling_every(pause, clock)) == pytest.approx(stays, abs=0.6)


def test_it_goes_when_all_have_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    registry = calling_every(20.0, clock)
    registry.say_farewell(registry.find("a", 1))
    assert farewell_seconds(clock, registry) == 0.0
