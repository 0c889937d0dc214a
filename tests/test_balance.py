"""Which of several learners an actor goes to."""

import pytest

from learner_server.balance import Balance, Door


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def doors(*actors: int, hosts: tuple[str, ...] = (), machines: tuple[int, ...] = (), local: int = 7000) -> list[Door]:
    """Returns learners with so many actors, at ports 5000, 5001, ...; those for local actors begin at `local`."""
    return [
        Door(
            host=hosts[rank] if hosts else "",
            port=5000 + rank,
            local_port=local + rank,
            machine=machines[rank] if machines else 0,
            actors=count,
        )
        for rank, count in enumerate(actors)
    ]


def balance(*actors: int, rank: int = 0, clock: Clock | None = None, **more: tuple[str, ...]) -> Balance:
    made = Balance(rank, clock=clock or Clock())
    made.update(doors(*actors, **more))  # type: ignore[arg-type]
    return made


def test_a_learner_by_itself_keeps_every_actor() -> None:
    for made in (Balance(), balance(50)):
        assert made.place("learner:5000", 50) is None
        assert not made.send_one_away()


@pytest.mark.parametrize(
    ("actors", "place"),
    [
        ((0, 0), None),
        ((1, 1), None),
        ((1, 0), "learner:5001"),
        ((0, 1), None),
        ((2, 2, 1), "learner:5002"),
        ((3, 1, 1), "learner:5001"),
    ],
)
def test_an_actor_that_joins_goes_to_the_learner_with_the_fewest_and_stays_where_it_may(
    actors: tuple[int, ...], place: str | None
) -> None:
    assert balance(*actors).place("learner:5000", actors[0]) == place


def test_actors_that_join_at_once_are_spread() -> None:
    made, here, places = balance(0, 0, 0), 0, list[str | None]()
    for _ in range(9):
        places.append(made.place("learner:5000", here))
        here += places[-1] is None
    assert [places.count(place) for place in (None, "learner:5001", "learner:5002")] == [3, 3, 3]


def test_an_actor_under_way_counts_where_it_was_sent_until_it_had_time_to_arrive() -> None:
    clock = Clock()
    made = balance(1, 0, clock=clock)
    assert made.place("learner:5000", 1) == "learner:5001"
    assert made.place("learner:5000", 1) is None
    clock.now += 5.1
    assert made.place("learner:5000", 1) == "learner:5001"


def test_an_actor_is_sent_on_in_the_terms_in_which_it_called() -> None:
    assert balance(1, 0).place("[::1]:5000", 1) == "[::1]:5001"
    assert balance(1, 0, hosts=("", "other.example")).place("learner:5000", 1) == "other.example:5001"
    assert balance(1, 0).place("127.0.0.1:7000", 1) == "127.0.0.1:7001"
    # Through a port that was mapped to another.
    assert balance(1, 0).place("127.0.0.1:8000", 1) == "127.0.0.1:5001"


def test_without_tls_a_local_actor_is_told_by_how_it_called() -> None:
    made = Balance()
    made.update(doors(9, 0, 5, hosts=("", "other.example", "here.example"), machines=(0, 1, 0), local=5000))
    assert made.place("127.0.0.1:5000", 9) == "127.0.0.1:5002"
    assert made.place("here.example:5000", 9) == "other.example:5001"


def test_a_local_actor_stays_on_its_machine() -> None:
    made = Balance()
    made.update(doors(9, 0, 5, machines=(0, 1, 0)))
    assert made.place("127.0.0.1:7000", 9) == "127.0.0.1:7002"
    assert made.place("learner:5000", 9) == "learner:5001"


def test_an_actor_that_does_not_say_how_it_called_stays() -> None:
    assert balance(5, 0).place("", 5) is None


@pytest.mark.parametrize(
    ("actors", "sends"),
    [((2, 0), True), ((3, 1), True), ((2, 1), False), ((1, 1), False), ((0, 2), False), ((2, 2, 0), True), ((3, 4, 0), False)],
)
def test_the_busiest_sends_an_actor_away_where_another_has_two_fewer(actors: tuple[int, ...], sends: bool) -> None:
    assert balance(*actors).send_one_away() == sends


def test_actors_are_sent_away_one_at_a_time() -> None:
    clock = Clock()
    made = balance(9, 0, clock=clock)
    assert [made.send_one_away() for _ in range(3)] == [True, False, False]
    made.update(doors(8, 0))
    assert not made.send_one_away()
    clock.now += 5.1
    made.update(doors(8, 1))
    assert made.send_one_away()
