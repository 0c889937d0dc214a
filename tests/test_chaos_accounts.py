"""The checker of a chaos run: what adds up passes, and each thing that does not is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_accounts import Accounts, Tail


def line(**changes: Any) -> dict[str, Any]:
    """Returns a line of metrics that balances: 100 received, 70 trained, 10 stale, 20 waiting."""
    whole: dict[str, Any] = {
        "seconds": 1.0,
        "env_steps": 70,
        "steps_trained": 70,
        "steps_received": 100,
        "steps_dropped": 10,
        "dropped_by_rule": {"stale": 10},
        "steps_waiting": 20,
        "steps_lost": 0,
        "parameter_version": 8,
        "learner_updates": 7,
        "episodes": 3,
    }
    return whole | changes


LATER = {"seconds": 2.0, "env_steps": 90, "steps_trained": 90, "steps_waiting": 0, "parameter_version": 10, "learner_updates": 9}
# What a process begins with that was left the line above: what waited is dropped.
RESUMED = {
    "steps_dropped": 30,
    "dropped_by_rule": {"stale": 10, "restart": 20},
    "steps_waiting": 0,
    "parameter_version": 1008,
}


def violations(*lines: dict[str, Any]) -> list[str]:
    accounts = Accounts()
    for each in lines:
        accounts.add(each)
    return accounts.violations


def violations_after_death(before: dict[str, Any], kept: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
    accounts = Accounts()
    accounts.add(before)
    accounts.add_death(kept)
    accounts.add(after)
    return accounts.violations


def test_a_run_that_adds_up_has_no_violations() -> None:
    assert violations(line(), line(**LATER)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps_received": 101}, "received is not"),
        ({"steps_dropped": 11, "steps_received": 101}, "sum over the rules"),
        ({"env_steps": 71}, "env_steps is not"),
        ({"steps_lost": 71}, "no part of"),
        ({"steps_waiting": -1, "steps_received": 79}, "fewer than none"),
    ],
)
def test_a_line_that_does_not_balance_is_found(changes: dict[str, Any], words: str) -> None:
    (found,) = violations(line(**changes))
    assert words in found


@pytest.mark.parametrize("name", ["parameter_version", "learner_updates", "episodes", "seconds"])
def test_a_number_that_goes_back_is_found(name: str) -> None:
    (found,) = violations(line(), line(**{name: 0}))
    assert f"{name} went back" in found


def test_steps_dropped_by_one_rule_do_not_turn_into_another_rules() -> None:
    (found,) = violations(line(), line(dropped_by_rule={"restart": 10}))
    assert "dropped by stale went back" in found


def test_steps_received_go_back_only_where_a_learner_stops_in_good_order() -> None:
    less = {"steps_received": 90, "steps_waiting": 10}
    assert violations(line(), line(**less, ended="stopped")) == []
    (found,) = violations(line(), line(**less))
    assert "steps_received went back" in found


def test_a_new_process_drops_what_waited_as_restart() -> None:
    assert violations_after_death(line(), line(), line(**RESUMED)) == []


def test_a_new_process_that_forgets_what_waited_is_found() -> None:
    forgetful = line(steps_received=80, steps_waiting=0, parameter_version=1008)
    found = violations_after_death(line(), line(), forgetful)
    assert any("began with restart of 0, and 20 was left to it" in each for each in found)


def test_a_new_process_that_begins_with_fewer_received_is_found() -> None:
    after = RESUMED | {"steps_received": 99, "steps_waiting": -1}
    assert any("began with 99 received of 100" in each for each in violations_after_death(line(), line(), line(**after)))


@pytest.mark.parametrize(("name", "value"), [("learner_updates", 8), ("steps_lost", 5)])
def test_a_new_process_that_begins_elsewhere_is_found(name: str, value: int) -> None:
    (found,) = violations_after_death(line(), line(), line(**RESUMED | {name: value}))
    assert f"began with {name} of {value}" in found


def test_steps_since_the_checkpoint_are_lost() -> None:
    kept = line(env_steps=50, steps_trained=50, steps_waiting=40, learner_updates=5, steps_lost=3)
    assert violations_after_death(line(steps_lost=3), kept, line(**RESUMED, steps_lost=23)) == []


def test_a_checkpoint_that_is_further_on_than_the_last_line_counts() -> None:
    kept = line(env_steps=80, steps_trained=80, steps_waiting=10, learner_updates=8)
    after = RESUMED | {"env_steps": 80, "steps_trained": 80, "steps_dropped": 20, "learner_updates": 8}
    after["dropped_by_rule"] = {"stale": 10, "restart": 10}
    assert violations_after_death(line(), kept, line(**after)) == []


def test_a_checkpoint_that_knows_of_more_that_came_counts_though_no_more_was_trained_on() -> None:
    kept = line(steps_received=110, steps_waiting=30)
    after = RESUMED | {"steps_received": 110, "steps_dropped": 40, "dropped_by_rule": {"stale": 10, "restart": 30}}
    assert violations_after_death(line(), kept, line(**after)) == []


@pytest.mark.parametrize(("came", "found"), [(130, 0), (100, 1)])
def test_counters_that_outlived_the_process_count_where_they_are_further_on(came: int, found: int) -> None:
    accounts = Accounts()
    accounts.add(line())
    accounts.add_death(line(), {"steps_received": 130, "trained_by_task": [75], "dropped_by_rule": {"stale": 10}})
    dropped = {"steps_dropped": 55, "dropped_by_rule": {"stale": 10, "restart": 45}}
    trained = {"env_steps": 75, "steps_trained": 75, "steps_lost": 5}
    accounts.add(line(**RESUMED | dropped | trained | {"steps_received": came}))
    assert len([each for each in accounts.violations if "a new process" in each]) == found


def test_counters_of_before_the_last_line_do_not_count() -> None:
    counted = {"steps_received": 60, "trained_by_task": [40], "dropped_by_rule": {}}
    accounts = Accounts()
    accounts.add(line())
    accounts.add_death(line(), counted)
    accounts.add(line(**RESUMED))
    assert accounts.violations == []


@pytest.mark.parametrize(("acknowledged", "found"), [(100, 0), (101, 1)])
def test_what_was_acknowledged_must_have_come(acknowledged: int, found: int) -> None:
    accounts = Accounts()
    accounts.add(line())
    accounts.close(acknowledged)
    assert len(accounts.violations) == found


def test_a_new_process_without_a_line_leaves_what_was_left_to_it() -> None:
    accounts = Accounts()
    accounts.add(line())
    accounts.add_death(line())
    accounts.add_death(line())
    for _ in range(2):  # and the second line is held against the first alone
        accounts.add(line(**RESUMED))
    assert (accounts.violations, accounts.deaths) == ([], 2)


def test_updates_are_new_from_those_on_that_were_left_to_the_new_process() -> None:
    accounts = Accounts()
    accounts.add(line())
    accounts.add_death(None)
    assert accounts.owed_updates == 7


def test_the_tail_gives_each_line_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.read() == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert (tail.read(), tail.torn) == ([{"a": 2}], 0)


def test_the_tail_passes_over_a_torn_line_and_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a"\n' + json.dumps({"a": 3}) + "\n")
    tail = Tail(path)
    assert (tail.read(), tail.torn) == ([{"a": 1}, {"a": 3}], 1)
