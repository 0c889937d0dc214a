"""File descriptors: connections cannot take those that files need."""

import resource
from collections.abc import Iterator

import pytest

from impala.errors import ConfigError
from learner_server.descriptors import make_room_for


class Limit:
    """What the system says that it grants, and what it was asked for."""

    def __init__(self, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard

    def get(self, _: int) -> tuple[int, int]:
        return self.soft, self.hard

    def set(self, _: int, limits: tuple[int, int]) -> None:
        assert limits[1] == self.hard
        self.soft = limits[0]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    limit = Limit(1024, 20_000)
    with monkeypatch.context() as patched:
        patched.setattr("learner_server.descriptors.resource.getrlimit", limit.get)
        patched.setattr("learner_server.descriptors.resource.setrlimit", limit.set)
        yield limit


def test_the_limit_is_raised_as_far_as_the_connections_take(limit: Limit) -> None:
    assert make_room_for(4096) == 4096
    assert limit.soft == 2 * 4096 + 512


def test_a_limit_that_suffices_is_left_alone(limit: Limit) -> None:
    limit.soft = 15_000
    assert (make_room_for(4096), limit.soft) == (4096, 15_000)
    limit.soft = limit.hard = resource.RLIM_INFINITY
    assert (make_room_for(4096), limit.soft) == (4096, resource.RLIM_INFINITY)


def test_where_the_system_grants_less_connections_are_fewer(limit: Limit) -> None:
    limit.hard = 4096
    assert make_room_for(4096) == (4096 - 512) // 2
    assert limit.soft == 4096


def test_a_system_without_room_for_a_connection_is_refused(limit: Limit) -> None:
    limit.hard = limit.soft = 513
    with pytest.raises(ConfigError, match="max_connections: expected a system that grants 514 open files or more, came 513"):
        make_room_for(4096)
