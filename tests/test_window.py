"""How many unrolls an actor has under way: what the learner allows, and what the distance to it takes."""

import threading

import pytest

from actor_client.window import Window
from tests.service import wait_until


def window(*, allowed: int = 2, round_trip: float | None = None, collection: float | None = None, most: int = 16) -> Window:
    made = Window(allowed, most_on_the_way=most)
    if round_trip is not None:
        made.note_round_trip(round_trip)
    if collection is not None:
        made.note_collection(collection)
    return made


@pytest.mark.parametrize(
    ("round_trip", "collection", "size"),
    [
        (0.0, 0.01, 2),
        (0.0099, 0.01, 2),  # as long as another is collected
        (0.0101, 0.01, 3),
        (0.0999, 0.01, 11),
        (0.050, 0.50, 2),
        (9.0, 0.01, 18),  # no more than 16 on the way
        (1.0, 0.0, 18),
    ],
)
def test_as_many_are_on_the_way_as_are_collected_meanwhile(round_trip: float, collection: float, size: int) -> None:
    assert window(round_trip=round_trip, collection=collection).size == size
    assert window(allowed=4, round_trip=round_trip, collection=collection).size == size + 2


def test_where_one_at_a_time_is_allowed_nothing_is_added() -> None:
    assert window(allowed=1, round_trip=9.0, collection=0.01).size == 1


@pytest.mark.parametrize("known", [{}, {"round_trip": 1.0}, {"collection": 0.001}])
def test_before_both_are_measured_it_is_what_the_learner_allows(known: dict[str, float]) -> None:
    assert window(allowed=2, **known).size == 2  # type: ignore[arg-type]


def test_one_slow_answer_is_no_distance() -> None:
    made = window(round_trip=0.001, collection=0.02)
    for _ in range(4):
        made.note_round_trip(5.0)
    assert made.size == 2


def test_a_route_that_became_longer_is_noticed_once_the_last_five_say_so() -> None:
    made = window(round_trip=0.001, collection=0.02)
    for _ in range(5):
        made.note_round_trip(0.099)
    assert made.size == 6
    made.note_round_trip(0.001)
    assert made.size == 2


def test_one_slow_collection_does_not_count() -> None:
    made = window(round_trip=0.099, collection=0.02)
    for seconds in (0.02, 10.0, 0.02):
        made.note_collection(seconds)
    assert made.size == 6


def test_what_waits_in_line_need_not_be_collected() -> None:
    made = window(round_trip=0.099, collection=0.02)
    for _ in range(9):
        made.note_line(0.04)
    assert made.size == 4
    for _ in range(9):
        made.note_line(7.0)
    assert made.size == 2


def test_one_long_line_does_not_count() -> None:
    made = window(round_trip=0.099, collection=0.02)
    for seconds in (0.0, 9.0, 0.0):
        made.note_line(seconds)
    assert made.size == 6


def test_weights_are_waited_for_where_one_is_under_way_and_no_other() -> None:
    assert window(allowed=1).waits_for_answers
    assert not window(allowed=2).waits_for_answers


def enters(made: Window) -> threading.Thread:
    thread = threading.Thread(target=made.enter, daemon=True)
    thread.start()
    return thread


def stays_outside(thread: threading.Thread) -> None:
    # It cannot return, so this wait never makes a test fail; it lets a window that does not wait be seen.
    thread.join(0.2)
    assert thread.is_alive()


def gets_in(thread: threading.Thread) -> None:
    thread.join(30.0)
    assert not thread.is_alive()


def test_entering_waits_for_one_to_leave() -> None:
    made = window(allowed=2)
    made.enter()
    made.enter()
    thread = enters(made)
    stays_outside(thread)
    made.leave()
    gets_in(thread)


def test_entering_waits_no_longer_once_more_may_be_under_way() -> None:
    made = window(collection=0.02)
    made.enter()
    made.enter()
    thread = enters(made)
    made.note_round_trip(0.099)
    gets_in(thread)


def test_a_window_that_shrank_lets_nobody_in_until_enough_have_left() -> None:
    made = window(round_trip=0.099, collection=0.02)
    for _ in range(6):
        made.enter()
    made.note_round_trip(0.001)
    for _ in range(4):
        made.leave()
    thread = enters(made)
    stays_outside(thread)
    made.leave()
    gets_in(thread)


def test_an_open_window_lets_everyone_in() -> None:
    made = window(allowed=1)
    made.enter()
    threads = [enters(made) for _ in range(3)]
    made.open()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
